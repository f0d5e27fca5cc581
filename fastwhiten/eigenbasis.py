"""Whitening in the eigenbasis (hop 3 of 5): for wide groups with few rows, where W costs more.

The stages of :class:`fastwhiten.autograd.Whiten` work on D x D matrices between two passes over the
rows. With D in the hundreds and about as many rows, those matrices cost more than the rows do. Here
the white coordinates ``Z = Xc U diag(1/s)`` are kept, and the backward is four products:

    dX = [ Gh - p sum(Gh) - p Z R ] diag(1/s) U^T,  Gh = G U,  F = Z^T Gh,  R = w F + (1 - w) F^T.

Matrix products of this size are the BLAS's, so this is plain PyTorch around two stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, composite, shrinkage
from .backends import reference
from .backends.opaque import add_product, product
from .folding import CHANNEL, GROUP, ROW_WEIGHT, ROWS, vmap_by_groups
from .function_base import Function, run
from .precision import backward_in_own_precision


class EigenbasisWhiten(Function):
    """ZCA: ``(x, row_weight, running_covariance, ...) -> (y, mean, covariance, ...)``."""

    ROLES = (ROWS, ROW_WEIGHT, GROUP) + (None,) * 6
    OUT_ROLES = (ROWS, CHANNEL, GROUP, GROUP, GROUP, GROUP, GROUP)

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        """Return ``(y, mean, covariance, eigenvalues, basis, white, rho)``."""
        stages = backends.get(backend)
        mean, covariance = stages.statistics(x, row_weight, groups, double_precision)
        rho = shrinkage.feature_intensity(
            shrink, covariance, running_covariance, batch_weight, x, mean, row_weight, stages
        )
        # PCA's matrix is U diag(1/s): what is wanted here, and a product less than ZCA's.
        eigenvalues, basis, scaled = stages.factor(
            covariance, running_covariance, rho, batch_weight, eps, reference.PCA
        )
        grouped = reference.to_groups(x, groups, mean.dtype)  # [G, M, D]
        white = product(grouped - mean.reshape(groups, 1, -1), scaled)  # [G, M, D]
        y = reference.from_groups(product(white, basis.mT), x)
        rho = mean.new_empty(0) if rho is None else rho
        return y, mean, covariance, eigenvalues, basis, white, rho

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs of the backward; only ``y`` is differentiable."""
        x, row_weight, running_covariance, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, row_weight, running_covariance, *output[3:])
        ctx.options = options

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``."""
        if grads[0] is None:
            return (None,) * 9
        dx = run(EigenbasisBackward, grads[0].contiguous(), *ctx.saved_tensors, *ctx.options)
        return (dx,) + (None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        roles, out_roles = EigenbasisWhiten.ROLES, EigenbasisWhiten.OUT_ROLES
        return vmap_by_groups(
            EigenbasisWhiten.apply, info.batch_size, in_dims, args, roles, out_roles, 3
        )


class EigenbasisBackward(Function):
    """First derivative of :class:`EigenbasisWhiten`: ``(grad, x, ...) -> dx``."""

    ROLES = (ROWS, ROWS, ROW_WEIGHT, GROUP, GROUP, GROUP, GROUP, GROUP) + (None,) * 6

    @staticmethod
    def forward(
        grad: Tensor,  # like x
        x: Tensor,  # [M, C] or [N, C, L]; kept for the second derivative
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T; likewise
        eigenvalues: Tensor,  # [G, D] T
        basis: Tensor,  # [G, D, D] T
        white: Tensor,  # [G, M, D] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> Tensor:
        """Return ``dx`` in the layout and dtype of ``x``."""
        rotated = product(reference.to_groups(grad, groups, white.dtype), basis)  # [G, M, D]
        f = product(white.mT, rotated)
        root = eigenvalues.sqrt()
        w = root.unsqueeze(-1) / (root.unsqueeze(-1) + root.unsqueeze(-2))
        r = torch.lerp(f.mT, f, w).mul_(batch_weight)
        if rho.numel():
            keep = (1.0 - rho).reshape(-1, 1, 1)
            trace = (f.diagonal(dim1=-2, dim2=-1) / eigenvalues).sum(-1, keepdim=True)  # [G, 1]
            spread = batch_weight * rho.unsqueeze(-1) / white.shape[-1] * trace * eigenvalues
            r = keep * r + torch.diag_embed(spread)
        total = rotated.sum(1, keepdim=True)
        if row_weight is None:
            share = 1.0 / white.shape[1]
            inner = add_product(rotated.sub_(share * total), white, r, -share)
        else:
            p = row_weight.reshape(-1, 1)
            inner = add_product(rotated - p * total, p * white, r, -1.0)
        return reference.from_groups(product(inner, (basis / root.unsqueeze(-2)).mT), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        ctx.save_for_backward(*inputs[:4], inputs[7])
        groups, eps, batch_weight, _, double_precision, backend = inputs[8:]
        ctx.options = (reference.ZCA, groups, eps, batch_weight, double_precision, backend)

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad`` and ``x``."""
        grad, x, row_weight, running, rho = ctx.saved_tensors
        intensity = rho if rho.numel() else None

        def forward(x_: Tensor) -> Tensor:
            return composite.whiten_features(
                x_, None, None, row_weight, running, intensity, ctx.options
            )

        return composite.second_derivative(forward, grad, x, grads[0]) + (None,) * 12

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        outputs, dims = vmap_by_groups(
            lambda *a: (EigenbasisBackward.apply(*a),),
            info.batch_size,
            in_dims,
            args,
            EigenbasisBackward.ROLES,
            (ROWS,),
            8,
        )
        return outputs[0], dims[0]
