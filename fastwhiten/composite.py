"""Whitening as a differentiable composition: the source of second derivatives.

The fused backward stages compute first derivatives. When somebody differentiates again, the
derivative of *that* is taken from the function below, which consists of differentiable pieces
without an eigenvalue gap (see :mod:`fastwhiten.matrix_functions`). The shrinkage intensity ``rho``
is a constant here as in the fused backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backends import reference
from .matrix_functions import inverse_factor

if TYPE_CHECKING:
    from .sides import Options


def whiten_features(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    row_weight: Tensor | None,
    running_covariance: Tensor | None,
    rho: Tensor | None,
    options: Options,
    total: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensor:
    """Return what :class:`fastwhiten.sides.feature.Whiten` returns first, for rows or planes ``x``.

    ``total`` adds up sums over rows where other processes hold rows too; ``row_weight`` sums to 1
    over all.
    """
    groups, batch_weight, eps, kind, double_precision, _, backend, _ = options
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    grouped = reference.to_groups(x, groups, dtype)  # [G, M, D]
    rows, size = grouped.shape[1:]
    p = (1.0 / rows) if row_weight is None else row_weight.to(dtype).reshape(-1, 1)
    centered = grouped - total((grouped * p).sum(1, keepdim=True))
    covariance = total((centered * p).mT @ centered)
    s = _shrink(reference.blend(covariance, running_covariance, batch_weight), rho, eps)
    y = centered @ inverse_factor(s, kind, eps, backend)
    if gamma is not None:
        y = y * gamma.reshape(groups, 1, size)
    if beta is not None:
        y = y + beta.reshape(groups, 1, size)
    return reference.from_groups(y, x)


def whiten_samples(
    x: Tensor, row_weight: Tensor | None, rho: Tensor | None, options: Options
) -> Tensor:
    """Return what :class:`fastwhiten.sides.sample.SampleWhiten` returns first, of ``[M, C]``."""
    groups, _, eps, _, double_precision, _, backend, _ = options
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    grouped = reference.to_groups(x, groups, dtype)  # [G, M, D]
    rows, size = grouped.shape[1:]
    p = (
        grouped.new_full((1, 1), 1.0 / rows)
        if row_weight is None
        else row_weight.to(dtype).reshape(-1, 1)
    )
    scaled = (grouped - (grouped * p).sum(1, keepdim=True)) * p.sqrt()
    gram = scaled @ scaled.mT  # [G, M, M]; its trace is the covariance's
    s = _shrink(gram, rho, eps, size)
    y = (inverse_factor(s, reference.ZCA, eps, backend) @ scaled) / p.sqrt()
    return reference.from_groups(y, x)


def second_derivative(
    forward: Callable[[Tensor], Tensor], grad: Tensor, x: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Differentiate ``<v, J(x)^T grad>`` with respect to ``grad`` and ``x``; J is ``forward``'s."""

    def first(grad_: Tensor, x_: Tensor) -> Tensor:
        pulled: Tensor = torch.func.vjp(forward, x_)[1](grad_)[0]
        return pulled

    d_grad, d_x = torch.func.vjp(first, grad, x)[1](v)
    return d_grad, d_x


def _shrink(a: Tensor, rho: Tensor | None, eps: float, size: int | None = None) -> Tensor:
    """Return ``(1 - rho) a + (rho trace(a) / size + eps) I``.

    ``size`` defaults to the order of ``a``.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    if rho is None:
        return a + eps * identity
    intensity = rho.reshape(-1, 1, 1)
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(-1, 1, 1)
    return (1.0 - intensity) * a + (intensity * trace / (size or a.shape[-1]) + eps) * identity
