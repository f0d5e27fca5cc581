"""The feature side: whitening through the D x D covariance, of one process or of a group of them.

Over a process group one collective of the forward stands between the stages ``statistics`` and
``factor``, and one of the backward between ``backward_reduce`` and ``backward_matrix``. With row
weights ``a p_n``, where ``a`` is this process's share of the weight and ``p_n`` sums to 1 over its
rows, ``dx_n = (g_n - a p_n sum g) W^T - a p_n xc_n inner``: the stage ``backward_apply`` takes
``a sum g`` and ``a inner``, and no vector of weights has to be made. Every process backpropagates
its own loss; the gradient is that of the *sum* of the losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, composite, distributed, shrinkage
from ..backends import reference
from ..distributed import Group
from ..function import GroupFunction, backward_of, run
from ..layout import restore
from .batch import Batch, Options, Whitened, optional, to_stage


class Whiten(GroupFunction):
    """``(x, gamma, beta, row_weight, running_covariance, ...) -> (y, mean, covariance, ...)``."""

    RESULTS = ("y", "mean", "covariance", "eigenvalues", "basis", "matrix", "rho", "share")

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous; in a group M may be 0
        gamma: Tensor | None,  # [C] T
        beta: Tensor | None,  # [C] T
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T
        options: Options,
        start: Tensor | None,  # [G, D, D] T, where an iterative eigensolver begins
        header: Tensor | None,  # [3] T, see distributed.weigh_rows; None for one process
        group: Group | None,
    ) -> tuple[Tensor, ...]:
        """Return what ``RESULTS`` names.

        ``rho`` is ``[0]`` without shrinkage; ``share`` is ``[G]``, the same number for each group
        of channels, and there in a process group only.
        """
        stages = backends.get(options.backend)
        groups, batch_weight, eps, kind, double_precision, shrink, _, _ = options
        if group is None or header is None:
            outputs: tuple[Tensor, ...] = stages.whiten_forward(
                x,
                gamma,
                beta,
                row_weight,
                running_covariance,
                groups,
                batch_weight,
                eps,
                kind,
                double_precision,
                *shrinkage.encode(shrink),
                start,
            )
            return outputs
        empty = x.numel() == 0
        if empty:
            size = x.shape[1] // groups
            mean = header.new_zeros(x.shape[1])
            covariance = header.new_zeros(groups, size, size)
        else:
            mean, covariance = stages.statistics(x, row_weight, groups, double_precision)
        moments = distributed.combine(mean, covariance, header, group)
        distributed.check_rows(moments.rows, moments.weight)
        rho = distributed.intensity(
            shrink, x, row_weight, moments, running_covariance, batch_weight, group.name
        )
        mean, covariance = moments.mean, moments.covariance
        factors = stages.factor(covariance, running_covariance, rho, batch_weight, eps, kind)
        y = torch.empty_like(x) if empty else stages.apply(x, mean, factors[2], gamma, beta)
        share = moments.share.repeat(groups)
        rho = mean.new_empty(0) if rho is None else rho
        return y, mean, covariance, *factors, rho, share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs of the backward; only ``y`` is differentiable."""
        x, gamma, beta, row_weight, running_covariance, options, _, _, group = inputs
        _, mean, _, eigenvalues, basis, matrix, rho, *share = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x, mean, eigenvalues, basis, matrix, gamma, rho, row_weight, running_covariance, *share
        )
        ctx.options, ctx.group, ctx.has_beta = options, group, beta is not None

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``x``, and this process's part of those of gamma and beta."""
        if grads[0] is None:
            return {}
        saved = ctx.saved_tensors
        share = saved[9] if len(saved) > 9 else None
        dx, dgamma, dbeta = run(
            WhitenBackward, grads[0].contiguous(), *saved[:9], ctx.options, share, ctx.group
        )
        return {
            "x": dx,
            "gamma": None if saved[5] is None else dgamma,
            "beta": dbeta if ctx.has_beta else None,
        }


class WhitenBackward(GroupFunction):
    """First derivative of :class:`Whiten`: ``(grad, x, ...) -> (dx, dgamma, dbeta)``."""

    RESULTS = ("dx", "dgamma", "dbeta")

    @staticmethod
    def forward(
        grad: Tensor,  # like x
        x: Tensor,  # [M, C] or [N, C, L], contiguous; in a group M may be 0
        mean: Tensor,  # [C] T
        eigenvalues: Tensor,  # [G, D] T, [0] for Cholesky
        basis: Tensor,  # [G, D, D] T, [0] for Cholesky
        matrix: Tensor,  # [G, D, D] T
        gamma: Tensor | None,  # [C] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T; kept for the second derivative
        options: Options,
        share: Tensor | None,  # [G] T
        group: Group | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``dx``, and ``dgamma``, ``dbeta`` of the rows here.

        ``dx`` has the layout and dtype of ``x``; the others are ``[C]`` in ``T``. In a process
        group, parameters are the reducer's: DistributedDataParallel averages their gradients.
        """
        stages = backends.get(options.backend)
        factors = (eigenvalues, basis, matrix, gamma, optional(rho))
        weight, kind = options.batch_weight, options.kind
        if group is None or share is None:
            dx, dgamma, dbeta = stages.whiten_backward(
                grad, x, mean, *factors, row_weight, weight, kind
            )
            return dx, dgamma, dbeta
        empty = x.numel() == 0
        if empty:
            dbeta, cross = torch.zeros_like(mean), torch.zeros_like(matrix)
        else:
            dbeta, cross = stages.backward_reduce(x, grad, mean, options.groups)
        total_cross, total = distributed.sum_backward(cross, dbeta, group.name)
        inner, _ = stages.backward_matrix(total_cross, *factors, weight, kind)
        dgamma = (matrix * cross).sum(-2).reshape(-1)
        if empty:
            return torch.empty_like(x), dgamma, dbeta
        inner = share.reshape(-1, 1, 1) * inner
        total = (share.unsqueeze(1) * total.reshape(options.groups, -1)).reshape(-1)
        dx = stages.backward_apply(x, grad, mean, total, matrix, inner, gamma, row_weight)
        return dx, dgamma, dbeta

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        grad, x, _, _, _, _, gamma, rho, row_weight, running, options, share, group = inputs
        ctx.save_for_backward(grad, x, gamma, rho, row_weight, running, share)
        ctx.options, ctx.group = options, group

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``grad``, ``x`` and ``gamma``.

        They are a vector-Jacobian product of the composite's, whose sums over rows are sums over
        all processes: several collectives, in the same order on each.
        """
        grad, x, gamma, rho, p, running, share = ctx.saved_tensors
        # dbeta does not depend on beta, and dgamma, dx do not either: any gamma and beta of the
        # right shape serve.
        scale = torch.ones_like(grads[1]) if gamma is None else gamma
        shift = torch.zeros_like(scale)
        rows, group = x.numel() // x.shape[1], ctx.group
        if group is not None:  # [M], sums to 1 over all processes
            p = (share[0] / max(rows, 1)).expand(rows) if p is None else share[0] * p

        def total(t: Tensor) -> Tensor:
            return t if group is None else distributed.AllReduce.apply(t, group.name)

        def forward(x_: Tensor, gamma_: Tensor, beta_: Tensor) -> Tensor:
            return composite.whiten_features(
                x_, gamma_, beta_, p, running, optional(rho), ctx.options, total
            )

        def first(grad_: Tensor, x_: Tensor, gamma_: Tensor) -> Any:
            return torch.func.vjp(forward, x_, gamma_, shift)[1](grad_)

        d_grad, d_x, d_gamma = torch.func.vjp(first, grad, x, scale)[1](tuple(grads))
        return {"grad": d_grad, "x": d_x, "gamma": None if gamma is None else d_gamma}


def whiten(batch: Batch) -> Whitened:
    """Whiten through the D x D whitening matrix; scale and shift are part of the kernels."""
    dtype = reference.accumulation_dtype(batch.x.dtype, batch.options.double_precision)
    start = _usable_start(batch, dtype)
    y, mean, covariance, _, basis, matrix, *_ = run(
        Whiten,
        batch.view,
        to_stage(batch.gamma, dtype),
        to_stage(batch.beta, dtype),
        batch.row_weight,
        to_stage(batch.running_covariance, dtype),
        batch.options,
        start,
        batch.header,
        batch.group,
    )
    return Whitened(restore(y, batch.x), mean, covariance, matrix, None if start is None else basis)


def _usable_start(batch: Batch, dtype: torch.dtype) -> Tensor | None:
    """Return the start where there is one for this dtype, and an eigensolver that gains from it."""
    start, options = batch.start, batch.options
    if start is None or start.dtype != dtype or options.kind == reference.CHOLESKY:
        return None
    if batch.group is not None:
        return None
    takes = backends.takes_start(options.backend, batch.x.device, start.shape[-1], start.dtype)
    return start.contiguous() if takes else None
