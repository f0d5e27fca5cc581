"""The ``torch.autograd.Function`` classes (hop 3 of 5): stages in, stages out, the graph between.

Each forward Function returns the whitened rows and, not differentiable, what its backward and the
running statistics need. Each backward is a Function of its own, so that it can be differentiated
again: its derivative is taken from :mod:`fastwhiten.composite`. Non-tensor arguments come last;
every class has ``setup_context`` and a ``vmap`` rule, so ``torch.func`` transforms compose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, composite, shrinkage
from .folding import CHANNEL, GROUP, ROW_WEIGHT, ROWS, vmap_by_groups
from .function_base import Function, run
from .precision import backward_in_own_precision


def _optional(t: Tensor) -> Tensor | None:
    """Return None for the empty tensor that stands for an absent result."""
    return t if t.numel() else None


class Whiten(Function):
    """Feature side of whitening.

    ``(x, gamma, beta, row_weight, running_covariance, start, ...) -> (y, mean, covariance, ...)``.
    """

    ROLES = (ROWS, CHANNEL, CHANNEL, ROW_WEIGHT, GROUP, GROUP) + (None,) * 7
    OUT_ROLES = (ROWS, CHANNEL, GROUP, GROUP, GROUP, GROUP, GROUP)

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] or [N, C, L], contiguous
        gamma: Tensor | None,  # [C] T
        beta: Tensor | None,  # [C] T
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T
        start: Tensor | None,  # [G, D, D] T, where an iterative eigensolver begins
        kind: int,
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        """Return ``(y, mean, covariance, eigenvalues, basis, matrix, rho)``.

        ``rho`` is ``[0]`` without shrinkage.
        """
        outputs: tuple[Tensor, ...] = backends.get(backend).whiten_forward(
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

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs of the backward; only ``y`` is differentiable."""
        x, gamma, beta, row_weight, running_covariance, _, *options = inputs
        _, mean, covariance, *factors = output
        ctx.mark_non_differentiable(mean, covariance, *factors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gamma, row_weight, running_covariance, mean, *factors)
        ctx.options = options
        ctx.has_beta = beta is not None

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``gamma`` and ``beta``."""
        if grads[0] is None:
            return (None,) * 13
        x, gamma, *rest = ctx.saved_tensors
        dx, dgamma, dbeta = run(
            WhitenBackward, grads[0].contiguous(), x, gamma, *rest, *ctx.options
        )
        gradients = (dx, None if gamma is None else dgamma, dbeta if ctx.has_beta else None)
        return gradients + (None,) * 10

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        return vmap_by_groups(
            Whiten.apply, info.batch_size, in_dims, args, Whiten.ROLES, Whiten.OUT_ROLES, 7
        )


class WhitenBackward(Function):
    """First derivative of :class:`Whiten`: ``(grad, x, gamma, ...) -> (dx, dgamma, dbeta)``."""

    ROLES = (ROWS, ROWS, CHANNEL, ROW_WEIGHT, GROUP, CHANNEL) + (GROUP,) * 4 + (None,) * 7
    OUT_ROLES = (ROWS, CHANNEL, CHANNEL)

    @staticmethod
    def forward(
        grad: Tensor,  # like x
        x: Tensor,  # [M, C] or [N, C, L], contiguous
        gamma: Tensor | None,  # [C] T
        row_weight: Tensor | None,  # [M] T
        running_covariance: Tensor | None,  # [G, D, D] T
        mean: Tensor,  # [C] T
        eigenvalues: Tensor,  # [G, D] T, [0] for Cholesky
        basis: Tensor,  # [G, D, D] T, [0] for Cholesky
        matrix: Tensor,  # [G, D, D] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        kind: int,
        groups: int,
        eps: float,
        batch_weight: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``dx``, ``dgamma`` and ``dbeta``.

        ``dx`` has the layout and dtype of ``x``; the others are ``[C]`` in ``T``.
        """
        dx, grad_gamma, grad_sum = backends.get(backend).whiten_backward(
            grad,
            x,
            mean,
            eigenvalues,
            basis,
            matrix,
            gamma,
            _optional(rho),
            row_weight,
            batch_weight,
            kind,
        )
        return dx, grad_gamma, grad_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        grad, x, gamma, row_weight, running_covariance = inputs[:5]
        ctx.save_for_backward(grad, x, gamma, row_weight, running_covariance, inputs[9])
        kind, groups, eps, batch_weight, _, double_precision, backend = inputs[10:]
        ctx.options = (kind, groups, eps, batch_weight, double_precision, backend)

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad``, ``x`` and ``gamma``.

        They are a vector-Jacobian product of the composite's.
        """
        grad, x, gamma, row_weight, running, rho = ctx.saved_tensors
        # dbeta does not depend on beta, and dgamma, dx do not either: any gamma and beta of the
        # right shape serve.
        scale = torch.ones_like(grads[1]) if gamma is None else gamma
        shift = torch.zeros_like(scale)

        def forward(x_: Tensor, gamma_: Tensor, beta_: Tensor) -> Tensor:
            return composite.whiten_features(
                x_, gamma_, beta_, row_weight, running, _optional(rho), ctx.options
            )

        def first(grad_: Tensor, x_: Tensor, gamma_: Tensor) -> Any:
            return torch.func.vjp(forward, x_, gamma_, shift)[1](grad_)

        pull = torch.func.vjp(first, grad, x, scale)[1]
        d_grad, d_x, d_gamma = pull(tuple(grads))
        return (d_grad, d_x, None if gamma is None else d_gamma) + (None,) * 14

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        return vmap_by_groups(
            WhitenBackward.apply,
            info.batch_size,
            in_dims,
            args,
            WhitenBackward.ROLES,
            WhitenBackward.OUT_ROLES,
            11,
        )


class SampleWhiten(Function):
    """Sample side: an M x M eigenproblem instead of D x D.

    For ZCA and no more rows than channels in a group.
    """

    ROLES = (ROWS, ROW_WEIGHT) + (None,) * 5
    OUT_ROLES = (ROWS, CHANNEL, ROWS, GROUP, GROUP, GROUP, GROUP)

    @staticmethod
    def forward(
        x: Tensor,  # [M, C] contiguous
        row_weight: Tensor | None,  # [M] T, strictly positive
        groups: int,
        eps: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        """Return ``(y, mean, scaled, eigenvalues, eigenvectors, projected, rho)``."""
        stages = backends.get(backend)
        mean, scaled, gram = stages.sample_statistics(x, row_weight, groups, double_precision)
        rho = shrinkage.sample_intensity(shrink, gram, row_weight, x.shape[1] // groups)
        eigenvalues, eigenvectors = stages.eigh(gram)
        y, projected = stages.sample_apply(
            scaled, eigenvalues, eigenvectors, row_weight, rho, eps, x.dtype
        )
        rho = mean.new_empty(0) if rho is None else rho
        return y, mean, scaled, eigenvalues, eigenvectors, projected, rho

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs of the backward; only ``y`` is differentiable."""
        x, row_weight, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, row_weight, *output[3:])
        ctx.options = options

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``."""
        if grads[0] is None:
            return (None,) * 7
        dx = run(SampleWhitenBackward, grads[0].contiguous(), *ctx.saved_tensors, *ctx.options)
        return (dx,) + (None,) * 6

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        return vmap_by_groups(
            SampleWhiten.apply,
            info.batch_size,
            in_dims,
            args,
            SampleWhiten.ROLES,
            SampleWhiten.OUT_ROLES,
            2,
        )


class SampleWhitenBackward(Function):
    """First derivative of :class:`SampleWhiten`: ``(grad, x, ...) -> dx``."""

    ROLES = (ROWS, ROWS, ROW_WEIGHT, GROUP, GROUP, GROUP, GROUP) + (None,) * 5

    @staticmethod
    def forward(
        grad: Tensor,  # [M, C]
        x: Tensor,  # [M, C]; kept for the second derivative
        row_weight: Tensor | None,  # [M] T
        eigenvalues: Tensor,  # [G, M] T
        eigenvectors: Tensor,  # [G, M, M] T
        projected: Tensor,  # [G, M, D] T
        rho: Tensor,  # [G] T, [0] without shrinkage
        groups: int,
        eps: float,
        shrink: str | float | None,
        double_precision: bool,
        backend: str,
    ) -> Tensor:
        """Return ``dx`` ``[M, C]`` in the dtype of ``grad``."""
        dx: Tensor = backends.get(backend).sample_backward(
            grad, projected, eigenvalues, eigenvectors, row_weight, _optional(rho), eps
        )
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the composite needs."""
        grad, x, row_weight = inputs[:3]
        ctx.save_for_backward(grad, x, row_weight, inputs[6])
        groups, eps, _, double_precision, backend = inputs[7:]
        ctx.options = (groups, eps, double_precision, backend)

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad`` and ``x``.

        They are a vector-Jacobian product of the composite's.
        """
        grad, x, row_weight, rho = ctx.saved_tensors

        def forward(x_: Tensor) -> Tensor:
            return composite.whiten_samples(x_, row_weight, _optional(rho), *ctx.options)

        return composite.second_derivative(forward, grad, x, grads[0]) + (None,) * 10

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        outputs, dims = vmap_by_groups(
            lambda *a: (SampleWhitenBackward.apply(*a),),
            info.batch_size,
            in_dims,
            args,
            SampleWhitenBackward.ROLES,
            (ROWS,),
            7,
        )
        return outputs[0], dims[0]
