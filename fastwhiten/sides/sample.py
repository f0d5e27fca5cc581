"""The sample side: for ZCA with no more rows than channels, an M x M eigenproblem instead of D x D.

Over a process group the rows of all processes are gathered, and each process whitens them all: that
moves no more numbers than the sums of D x D covariances, and is as exact as one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, composite, distributed, shrinkage
from ..backends import reference
from ..backends.opaque import product
from ..function import GroupFunction, backward_of, run
from ..layout import restore
from .batch import Batch, Options, Whitened, affine, optional

# Weights are divided by their square root, so a zero would lose its row. They are raised to this
# fraction of the largest one and computed in float64: a relative change of the covariance below
# float32 rounding, and an error of that row's output below 1e-10.
WEIGHT_FLOOR = 1e-12


class SampleWhiten(GroupFunction):
    """``(x, row_weight, options, need) -> (y, mean, covariance, ...)``."""

    RESULTS = ("y", "mean", "covariance", "eigenvalues", "eigenvectors", "projected", "rho")

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] contiguous
        row_weight: Tensor | None,  # [M] T, strictly positive
        options: Options,
        need: str | None,
    ) -> tuple[Tensor, ...]:
        """Return what ``RESULTS`` names.

        ``rho`` is ``[0]`` without shrinkage, ``covariance`` where ``need`` does not ask for it.
        """
        stages, groups = backends.get(options.backend), options.groups
        mean, scaled, gram = stages.sample_statistics(
            x, row_weight, groups, options.double_precision
        )
        rho = shrinkage.sample_intensity(options.shrink, gram, row_weight, x.shape[1] // groups)
        eigenvalues, eigenvectors = stages.eigh(gram)
        y, projected = stages.sample_apply(
            scaled, eigenvalues, eigenvectors, row_weight, rho, options.eps, x.dtype
        )
        rho = mean.new_empty(0) if rho is None else rho
        covariance = mean.new_empty(0)
        if need == "covariance":  # half the work of scaled^T scaled, and symmetric as it comes
            _, covariance = stages.statistics(x, row_weight, groups, options.double_precision)
        return y, mean, covariance, eigenvalues, eigenvectors, projected, rho

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs of the backward; only ``y`` is differentiable."""
        x, row_weight, ctx.options, _ = inputs
        _, _, _, eigenvalues, eigenvectors, projected, rho = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(projected, eigenvalues, eigenvectors, row_weight, rho, x)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradient of ``x``."""
        if grads[0] is None:
            return {}
        dx = run(SampleWhitenBackward, grads[0].contiguous(), *ctx.saved_tensors, ctx.options)
        return {"x": dx}


class SampleWhitenBackward(GroupFunction):
    """First derivative of :class:`SampleWhiten`: ``(grad, projected, ...) -> dx``."""

    RESULTS = ("dx",)

    @staticmethod
    def forward(
        grad: Tensor,  # [M, C]
        projected: Tensor,  # [G, M, D] T
        eigenvalues: Tensor,  # [G, M] T
        eigenvectors: Tensor,  # [G, M, M] T
        row_weight: Tensor | None,  # [M] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        x: Tensor,  # [M, C]; kept for the second derivative
        options: Options,
    ) -> Tensor:
        """Return ``dx`` ``[M, C]`` in the dtype of ``grad``."""
        dx: Tensor = backends.get(options.backend).sample_backward(
            grad, projected, eigenvalues, eigenvectors, row_weight, optional(rho), options.eps
        )
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        grad, _, _, _, row_weight, rho, x, ctx.options = inputs
        ctx.save_for_backward(grad, row_weight, rho, x)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``grad`` and ``x``, by the composite."""
        grad, row_weight, rho, x = ctx.saved_tensors

        def forward(x_: Tensor) -> Tensor:
            return composite.whiten_samples(x_, row_weight, optional(rho), ctx.options)

        d_grad, d_x = composite.second_derivative(forward, grad, x, grads[0])
        return {"grad": d_grad, "x": d_x}


def whiten(batch: Batch) -> Whitened:
    """Whiten through the rows' Gram matrix."""
    view, p, options = batch.view, batch.row_weight, batch.options
    if view.dim() == 3:
        # No more rows than channels: the one layout change is smaller than the matrix saved.
        # Contiguous: a view of one sample would stay one.
        view = view.transpose(1, 2).reshape(-1, view.shape[1]).contiguous()
    if batch.slots is not None:
        view = run(distributed.GatherRows, view, batch.slots)
    if p is not None:
        p = torch.maximum(p, WEIGHT_FLOOR * p.max())
        p = p / p.sum()
    y, mean, covariance, eigenvalues, _, projected, rho = run(
        SampleWhiten, view, p, options, batch.need
    )
    matrix = None
    if batch.need == "matrix":
        with torch.no_grad():
            matrix = _matrix(eigenvalues, projected, optional(rho), options.eps)
    if batch.slots is not None:
        y = run(distributed.OwnRows, y, batch.slots)
    return Whitened(affine(restore(y, batch.x), batch), mean, optional(covariance), matrix)


def _matrix(eigenvalues: Tensor, projected: Tensor, rho: Tensor | None, eps: float) -> Tensor:
    """Return ``W = S^{-1/2}`` ``[G, D, D]`` without a D x D eigenproblem.

    ``W = e^{-1/2} I + (1 - rho) scaled^T V diag(k) V^T scaled``,
    ``k = -1 / (sqrt(e) t (sqrt(e) + t))``: the divided difference of ``l^{-1/2}``, so no small
    eigenvalue is divided by.
    """
    t, e = reference.sample_spectrum(eigenvalues, rho, eps, projected.shape[-1])
    root = e.sqrt().unsqueeze(-1)  # [G, 1]
    keep = torch.ones_like(root) if rho is None else (1.0 - rho).unsqueeze(-1)
    k = -keep * t / (root * (root + t))  # projected carries 1/t, twice
    identity = torch.eye(projected.shape[-1], dtype=projected.dtype, device=projected.device)
    matrix = product(projected.mT, k.unsqueeze(-1) * projected) + identity / root.unsqueeze(-1)
    return reference.symmetrize(matrix)
