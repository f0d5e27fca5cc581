"""Mean and covariance as a differentiable pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import backends
from .backends import reference
from .backends.opaque import product
from .function import GroupFunction, backward_of


class Statistics(GroupFunction):
    """``(x, row_weight, ...) -> (mean [C], covariance [G, D, D])``."""

    RESULTS = ("mean", "covariance")

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
        x, row_weight, ctx.groups, *_ = inputs
        ctx.save_for_backward(x, row_weight, output[0])

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradient of ``x``, in differentiable operations.

        ``dx_n = p_n (grad_mean + 2 sym(grad_covariance) xc_n)``.
        """
        x, row_weight, mean = ctx.saved_tensors
        grouped = reference.to_groups(x, ctx.groups, mean.dtype)  # [G, M, D]
        centered = grouped - mean.reshape(ctx.groups, 1, -1)
        inner = product(centered, 2.0 * reference.symmetrize(grads[1]))
        inner = inner + grads[0].reshape(ctx.groups, 1, -1)
        p = 1.0 / grouped.shape[1] if row_weight is None else row_weight.reshape(-1, 1)
        return {"x": reference.from_groups(p * inner, x)}
