"""Whitening in the eigenbasis: for wide groups with few rows, where W costs more.

The stages of :mod:`fastwhiten.sides.feature` work on D x D matrices between two passes over the
rows. With D in the hundreds and about as many rows, those matrices cost more than the rows do. Here
the white coordinates ``Z = Xc U diag(1/s)`` are kept, and the backward is four products:

    dX = [ Gh - p sum(Gh) - p Z R ] diag(1/s) U^T,  Gh = G U,  F = Z^T Gh,  R = w F + (1 - w) F^T.

Matrix products of this size are the BLAS's, so this is plain PyTorch around two stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, composite, shrinkage
from ..backends import reference
from ..backends.opaque import add_product, product
from ..function import GroupFunction, backward_of, run
from ..layout import restore
from .batch import Batch, Options, Whitened, affine, optional, to_stage


class EigenbasisWhiten(GroupFunction):
    """ZCA: ``(x, row_weight, running_covariance, options) -> (y, mean, covariance, ...)``."""

    RESULTS = ("y", "mean", "covariance", "eigenvalues", "basis", "white", "rho")

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T
        options: Options,
    ) -> tuple[Tensor, ...]:
        """Return what ``RESULTS`` names; ``rho`` is ``[0]`` without shrinkage."""
        stages = backends.get(options.backend)
        groups, batch_weight, eps, _, double_precision, shrink, _, _ = options
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
        x, row_weight, running_covariance, ctx.options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, row_weight, running_covariance, *output[3:])

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradient of ``x``."""
        if grads[0] is None:
            return {}
        dx = run(EigenbasisBackward, grads[0].contiguous(), *ctx.saved_tensors, ctx.options)
        return {"x": dx}


class EigenbasisBackward(GroupFunction):
    """First derivative of :class:`EigenbasisWhiten`: ``(grad, x, ...) -> dx``."""

    RESULTS = ("dx",)

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
        options: Options,
    ) -> Tensor:
        """Return ``dx`` in the layout and dtype of ``x``."""
        groups, batch_weight = options.groups, options.batch_weight
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
        grad, x, row_weight, running_covariance, _, _, _, rho, ctx.options = inputs
        ctx.save_for_backward(grad, x, row_weight, running_covariance, rho)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``grad`` and ``x``."""
        grad, x, row_weight, running, rho = ctx.saved_tensors

        def forward(x_: Tensor) -> Tensor:
            return composite.whiten_features(
                x_, None, None, row_weight, running, optional(rho), ctx.options
            )

        d_grad, d_x = composite.second_derivative(forward, grad, x, grads[0])
        return {"grad": d_grad, "x": d_x}


def whiten(batch: Batch) -> Whitened:
    """Whiten through the white coordinates of the rows."""
    y, mean, covariance, eigenvalues, basis, _, _ = run(
        EigenbasisWhiten,
        batch.view,
        batch.row_weight,
        to_stage(batch.running_covariance, batch.dtype),
        batch.options,
    )
    matrix = None
    if batch.need == "matrix":
        with torch.no_grad():
            half = basis * eigenvalues.rsqrt().unsqueeze(-2)
            matrix = reference.symmetrize(product(half, basis.mT))
    return Whitened(affine(restore(y, batch.x), batch), mean, covariance, matrix)
