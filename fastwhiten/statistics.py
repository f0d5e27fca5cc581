"""Mean and covariance as a differentiable pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import backends
from .backends import reference
from .backends.opaque import product
from .folding import CHANNEL, GROUP, ROW_WEIGHT, ROWS, vmap_by_groups
from .function_base import Function
from .precision import backward_in_own_precision


class Statistics(Function):
    """``(x, row_weight, ...) -> (mean [C], covariance [G, D, D])``."""

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous
        row_weight: Tensor | None,  # [M] T
        groups: int,
        double_precision: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        """Run the statistics stage."""
        mean, covariance = backends.get(backend).statistics(x, row_weight, groups, double_precision)
        return mean, covariance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the input and its mean."""
        ctx.save_for_backward(inputs[0], inputs[1], output[0])
        ctx.groups = inputs[2]

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``, in differentiable operations.

        ``dx_n = p_n (grad_mean + 2 sym(grad_covariance) xc_n)``.
        """
        x, row_weight, mean = ctx.saved_tensors
        grouped = reference.to_groups(x, ctx.groups, mean.dtype)  # [G, M, D]
        centered = grouped - mean.reshape(ctx.groups, 1, -1)
        inner = product(centered, 2.0 * reference.symmetrize(grads[1]))
        inner = inner + grads[0].reshape(ctx.groups, 1, -1)
        p = 1.0 / grouped.shape[1] if row_weight is None else row_weight.reshape(-1, 1)
        return reference.from_groups(p * inner, x), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        roles = (ROWS, ROW_WEIGHT, None, None, None)
        return vmap_by_groups(
            Statistics.apply, info.batch_size, in_dims, args, roles, (CHANNEL, GROUP), 2
        )
