"""Whitening with the statistics of a process group (hop 3 of 5): the feature side's stages.

Between ``statistics`` and ``factor`` stands the one collective of the forward, between
``backward_reduce`` and ``backward_matrix`` the one of the backward; the stages are the chosen
backend's. With row weights ``a p_n``, where ``a`` is this process's share of the weight and ``p_n``
sums to 1 over its rows, ``dx_n = (g_n - a p_n sum g) W^T - a p_n xc_n inner``: the stage
``backward_apply`` takes ``a sum g`` and ``a inner``, and no vector of weights has to be made.

Every process backpropagates its own loss; the gradient is that of the *sum* of the losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, composite
from .backends import reference
from .backends.intensity import ledoit_wolf, oas
from .distributed import (
    AllReduce,
    Group,
    Moments,
    all_reduce,
    combine,
    sum_backward,
    weigh_rows,
)
from .folding import CHANNEL, GROUP, ROW_WEIGHT, ROWS, vmap_by_groups
from .function_base import Function, run
from .layout import as_rows_or_planes, restore
from .precision import backward_in_own_precision
from .sides import Options, Whitened


def _intensity(
    method: str | float | None,
    x: Tensor,
    row_weight: Tensor | None,
    moments: Moments,
    running_covariance: Tensor | None,
    batch_weight: float,
    name: str,
) -> Tensor | None:
    """Return the shrinkage intensity ``[G]`` of the whole batch, as the stage ``intensity``.

    Ledoit-Wolf needs fourth moments about the common mean, which nobody knows before the
    all-reduce of the statistics: it takes a second one, of G numbers.
    """
    covariance = moments.covariance
    groups, size = covariance.shape[:2]
    if method is None:
        return None
    if not isinstance(method, str):
        return covariance.new_full((groups,), method)
    blended = reference.blend(covariance, running_covariance, batch_weight)
    trace, square = blended.diagonal(dim1=-2, dim2=-1).sum(-1), blended.square().sum((-2, -1))
    part = 1.0 if running_covariance is None else batch_weight
    rows = moments.effective_rows / part**2
    if method == "oas":
        return oas(trace, square, rows, size)
    centered = reference.to_groups(x, groups, covariance.dtype)  # [G, M, D]
    centered = centered - moments.mean.reshape(groups, 1, size)
    squared = centered.square().sum(-1).square()  # [G, M]
    p = 1.0 / max(squared.shape[-1], 1) if row_weight is None else row_weight
    fourth = all_reduce(moments.share * (squared * p).sum(-1), name)  # [G]
    return ledoit_wolf(trace, square, fourth - covariance.square().sum((-2, -1)), rows, size)


def _check_rows(moments: Moments) -> None:
    """Raise on every process alike if there is nothing to whiten.

    Only where looking costs no synchronisation; elsewhere the output is NaN.
    """
    if torch.compiler.is_compiling() or moments.rows.device.type != "cpu":
        return
    rows, weight = int(moments.rows), float(moments.weight)
    if rows < 2:
        raise ValueError(
            "whitening over a process group: expected at least 2 rows (N times spatial size) in "
            f"all processes together, got {rows}; a covariance needs more: use a larger batch, "
            "drop_last=True in the DataLoader, or .eval()"
        )
    if weight == 0.0:
        raise ValueError(
            "whitening over a process group: expected sample_weight values that are not all zero "
            "on all processes, got a sum of 0"
        )


class SyncWhiten(Function):
    """``(x, gamma, beta, row_weight, header, running_covariance, ...) -> (y, mean, ...)``."""

    ROLES = (ROWS, CHANNEL, CHANNEL, ROW_WEIGHT, ROW_WEIGHT, GROUP) + (None,) * 8
    OUT_ROLES = (ROWS, CHANNEL) + (GROUP,) * 6

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous; M may be 0
        gamma: Tensor | None,  # [C] T
        beta: Tensor | None,  # [C] T
        row_weight: Tensor | None,  # [M] T, sums to 1 over the rows here
        header: Tensor,  # [3] T, see weigh_rows
        running_covariance: Tensor | None,  # [G, D, D] T
        kind: int,
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
        group: Group,
    ) -> tuple[Tensor, ...]:
        """Return ``(y, mean, covariance, eigenvalues, basis, matrix, rho, share)``.

        ``rho`` is ``[0]`` without shrinkage; ``share`` is ``[G]``, the same number for each group.
        """
        stages = backends.get(backend)
        empty = x.numel() == 0
        if empty:
            size = x.shape[1] // groups
            mean = header.new_zeros(x.shape[1])
            covariance = header.new_zeros(groups, size, size)
        else:
            mean, covariance = stages.statistics(x, row_weight, groups, double_precision)
        moments = combine(mean, covariance, header, group)
        _check_rows(moments)
        rho = _intensity(
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
        x, gamma, beta, row_weight, _, running_covariance, *options = inputs
        _, mean, _, *factors = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gamma, row_weight, running_covariance, mean, *factors)
        ctx.options = options
        ctx.has_beta = beta is not None

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, and this process's part of those of gamma and beta."""
        if grads[0] is None:
            return (None,) * 14
        x, gamma, *rest = ctx.saved_tensors
        dx, dgamma, dbeta = run(
            SyncWhitenBackward, grads[0].contiguous(), x, gamma, *rest, *ctx.options
        )
        gradients = (dx, None if gamma is None else dgamma, dbeta if ctx.has_beta else None)
        return gradients + (None,) * 11

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        roles, out_roles = SyncWhiten.ROLES, SyncWhiten.OUT_ROLES
        return vmap_by_groups(SyncWhiten.apply, info.batch_size, in_dims, args, roles, out_roles, 7)


class SyncWhitenBackward(Function):
    """First derivative of :class:`SyncWhiten`: ``(grad, x, gamma, ...) -> (dx, dgamma, dbeta)``."""

    ROLES = (ROWS, ROWS, CHANNEL, ROW_WEIGHT, GROUP, CHANNEL) + (GROUP,) * 5 + (None,) * 8
    OUT_ROLES = (ROWS, CHANNEL, CHANNEL)

    @staticmethod
    def forward(
        grad: Tensor,  # like x
        x: Tensor,  # [M, C] or [N, C, L], contiguous; M may be 0
        gamma: Tensor | None,  # [C] T
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T; kept for the second derivative
        mean: Tensor,  # [C] T
        eigenvalues: Tensor,  # [G, D] T, [0] for Cholesky
        basis: Tensor,  # [G, D, D] T, [0] for Cholesky
        matrix: Tensor,  # [G, D, D] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        share: Tensor,  # [G] T
        kind: int,
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
        group: Group,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``dx``, and ``dgamma``, ``dbeta`` ``[C]`` of the rows here.

        Parameters are the reducer's: DistributedDataParallel averages their gradients.
        """
        stages = backends.get(backend)
        empty = x.numel() == 0
        if empty:
            grad_sum, cross = torch.zeros_like(mean), torch.zeros_like(matrix)
        else:
            grad_sum, cross = stages.backward_reduce(x, grad, mean, groups)
        total_cross, total_sum = sum_backward(cross, grad_sum, group.name)
        inner, _ = stages.backward_matrix(
            total_cross,
            eigenvalues,
            basis,
            matrix,
            gamma,
            rho if rho.numel() else None,
            batch_weight,
            kind,
        )
        grad_gamma = (matrix * cross).sum(-2).reshape(-1)
        if empty:
            return torch.empty_like(x), grad_gamma, grad_sum
        inner = share.reshape(-1, 1, 1) * inner
        total_sum = (share.unsqueeze(1) * total_sum.reshape(groups, -1)).reshape(-1)
        dx = stages.backward_apply(x, grad, mean, total_sum, matrix, inner, gamma, row_weight)
        return dx, grad_gamma, grad_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        ctx.save_for_backward(*inputs[:5], inputs[9], inputs[10])
        kind, groups, eps, batch_weight, _, double_precision, backend, group = inputs[11:]
        ctx.options = (kind, groups, eps, batch_weight, double_precision, backend)
        ctx.group = group

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad``, ``x`` and ``gamma``.

        They are a vector-Jacobian product of the composite's, whose sums over rows are sums over
        all processes: several collectives, in the same order on each.
        """
        grad, x, gamma, row_weight, running, rho, share = ctx.saved_tensors
        scale = torch.ones_like(grads[1]) if gamma is None else gamma
        shift = torch.zeros_like(scale)
        rows = x.numel() // x.shape[1]
        # [M], sums to 1 over all processes
        p = (share[0] / max(rows, 1)).expand(rows) if row_weight is None else share[0] * row_weight
        name = ctx.group.name

        def forward(x_: Tensor, gamma_: Tensor, beta_: Tensor) -> Tensor:
            return composite.whiten_features(
                x_,
                gamma_,
                beta_,
                p,
                running,
                rho if rho.numel() else None,
                ctx.options,
                total=lambda t: AllReduce.apply(t, name),
            )

        def first(grad_: Tensor, x_: Tensor, gamma_: Tensor) -> Any:
            return torch.func.vjp(forward, x_, gamma_, shift)[1](grad_)

        pull = torch.func.vjp(first, grad, x, scale)[1]
        d_grad, d_x, d_gamma = pull(tuple(grads))
        return (d_grad, d_x, None if gamma is None else d_gamma) + (None,) * 16

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        roles, out_roles = SyncWhitenBackward.ROLES, SyncWhitenBackward.OUT_ROLES
        return vmap_by_groups(
            SyncWhitenBackward.apply, info.batch_size, in_dims, args, roles, out_roles, 12
        )


def whiten_over(
    group: Group,
    x: Tensor,
    options: Options,
    backend: str,
    sample_weight: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_covariance: Tensor | None,
) -> Whitened:
    """Whiten ``x`` ``[N, C, *spatial]`` with the statistics of all processes of ``group``.

    Always on the feature side: the rows' Gram matrix would need every process's rows on every
    process. With fewer rows than channels in all processes together it is as exact, because of
    eps, and costs a D x D eigenproblem on each process.
    """
    dtype = reference.accumulation_dtype(x.dtype, options.double_precision)
    row_weight, header = weigh_rows(sample_weight, x, dtype)
    gamma, beta, running_covariance = (
        None if t is None else t.to(dtype).contiguous() for t in (gamma, beta, running_covariance)
    )
    y, mean, covariance, _, _, matrix, _, _ = run(
        SyncWhiten,
        as_rows_or_planes(x),
        gamma,
        beta,
        row_weight,
        header,
        running_covariance,
        options.kind,
        options.groups,
        options.eps,
        options.batch_weight,
        options.shrink,
        options.double_precision,
        backend,
        group,
    )
    return Whitened(restore(y, x), mean, covariance, matrix)
