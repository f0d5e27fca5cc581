"""Differentiable matrix functions behind whitening, safe where eigenvalues coincide.

``torch.linalg.eigh`` has a gradient that divides by eigenvalue gaps. A power ``F(S) = S^p`` does
not need it (Daleckii and Krein 1965): in the eigenvectors of ``S`` its derivative in the direction
``B`` is ``f[l_i, l_j] B_ij``, a divided difference of ``f(l) = l^p``, and its second derivative a
sum over ``f[l_i, l_k, l_j]``, both evaluated without cancellation
(:mod:`fastwhiten.divided_differences`). For the square root they solve Lyapunov equations, so that
it and the inverse square root have derivatives of any order, which the double backward of
:func:`fastwhiten.whiten` is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends
from .backends import reference
from .backends.opaque import product
from .backends.reference import symmetrize
from .divided_differences import first, second
from .function import Function, backward_of


def batched(a: Tensor) -> Tensor:
    """Return ``[..., D, D]`` as ``[B, D, D]``, contiguous: what the raw ops take."""
    return a.reshape(-1, *a.shape[-2:]).contiguous()


def _rotate(a: Tensor, basis: Tensor) -> Tensor:
    """Return ``U^T A U``, all ``[..., D, D]``."""
    return product(product(basis.mT, a), basis)


class PowerDerivative(Function):
    """The derivative of ``S^p`` in the symmetric direction ``B``; linear and self-adjoint in ``B``.

    ``S`` has the eigensystem ``(l, U)``. For ``p = 1/2`` it is the solution ``Z`` of
    ``S^{1/2} Z + Z S^{1/2} = B``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, b: Tensor, eigenvalues: Tensor, basis: Tensor, p: float) -> Tensor:
        """Return ``U [f[l_i, l_j] (U^T B U)_ij] U^T``.

        All arguments are ``[..., D, D]`` or ``[..., D]``.
        """
        weights = first(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2), p)
        return symmetrize(_rotate(weights * _rotate(b, basis), basis.mT))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep ``S``, ``B``, the eigensystem and the derivative."""
        s, b, eigenvalues, basis, ctx.p = inputs
        ctx.save_for_backward(s, b, eigenvalues, basis, output)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``S`` and ``B``.

        ``B`` gets ``Y``, the derivative in the direction of the gradient. ``S`` gets the second
        derivative in both directions; of a square root ``P`` gets ``-(Y Z + Z Y)``.
        """
        s, b, eigenvalues, basis, z = ctx.saved_tensors
        grad = symmetrize(grads[0])
        y = PowerDerivative.apply(s, grad, eigenvalues, basis, ctx.p)
        if ctx.p == 0.5:
            inner = -symmetrize(y @ z + z @ y)
            return {"s": PowerDerivative.apply(s, inner, eigenvalues, basis, ctx.p), "b": y}
        return {"s": SecondDerivative.apply(symmetrize(b), grad, eigenvalues, basis, ctx.p), "b": y}


class SecondDerivative(Function):
    """The second derivative of ``S^p`` in two symmetric directions; the last that there is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(b: Tensor, c: Tensor, eigenvalues: Tensor, basis: Tensor, p: float) -> Tensor:
        """Return ``U [sum_k f[l_i, l_k, l_j] (B_ik C_kj + C_ik B_kj)] U^T``, in slices of k.

        All arguments are ``[..., D, D]`` or ``[..., D]``.
        """
        b, c = _rotate(b, basis), _rotate(c, basis)
        size = basis.shape[-1]
        total = torch.zeros_like(b)
        row, column = (eigenvalues[..., None, :, None], eigenvalues[..., None, None, :])
        step = max(1, SLICE // max(1, b.numel()))
        for k in range(0, size, step):
            part = slice(k, k + step)
            # [..., K, D, D]
            weights = second(row, eigenvalues[..., part, None, None], column, p)
            rows = (b.mT[..., part, :].unsqueeze(-1), c.mT[..., part, :].unsqueeze(-1))
            columns = (c[..., part, :].unsqueeze(-2), b[..., part, :].unsqueeze(-2))
            terms = rows[0] * columns[0] + rows[1] * columns[1]
            total = total + (weights * terms).sum(-3)
        return symmetrize(_rotate(total, basis.mT))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the exponent, for the error."""
        ctx.p = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"matrix_power: expected at most two derivatives of the power {ctx.p}, got a third; "
            "the powers 1/2 and -1/2, of which others are products, have any number"
        )


# Numbers of a slice of SecondDerivative: 32 MB in float64.
SLICE = 1 << 22


class MatrixPower(Function):
    """``S -> S^p`` for symmetric positive definite ``[..., D, D]``.

    Also returns the eigensystem used.
    """

    @staticmethod
    def forward(
        s: Tensor, start: Tensor | None, p: float, floor: float, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(S^p, eigenvalues, basis)``.

        Eigenvalues are clamped at ``floor`` (rounding can go below).
        """
        near = None if start is None else batched(start)
        eigenvalues, basis = backends.get(backend).eigh(batched(s), near)
        eigenvalues = eigenvalues.clamp(min=floor).reshape(s.shape[:-1])
        basis = basis.reshape(s.shape)
        power = symmetrize(product(basis * eigenvalues.pow(p).unsqueeze(-2), basis.mT))
        return power, eigenvalues, basis

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep ``S``, its power and the eigensystem; only the power is differentiable."""
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.p = inputs[2]
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the derivative in the direction of the gradient.

        For ``p = -1/2`` through ``W = P^{-1}``: ``P`` gets ``-W grad W``, which has derivatives of
        any order.
        """
        s, w, eigenvalues, basis = ctx.saved_tensors
        grad, p = symmetrize(grads[0]), ctx.p
        if p == -0.5:
            grad, p = -symmetrize(product(product(w, grad), w)), 0.5
        return {"s": PowerDerivative.apply(s, grad, eigenvalues, basis, p)}

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], s: Tensor, start: Tensor | None, *options: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The function is batched over leading dimensions already."""
        s, start = _lead(info.batch_size, in_dims, s, start)
        return MatrixPower.apply(s, start, *options), (0, 0, 0)


def _lead(
    batch: int, dims: tuple[Any, ...], a: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return matrices and where to begin with the vmapped dimension first, contiguous."""
    moved = [
        t
        if t is None
        else (t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)).contiguous()
        for t, dim in zip((a, start), dims, strict=False)
    ]
    return moved[0], moved[1]  # type: ignore[return-value]


class SymmetricEigh(Function):
    """Eigensystem of symmetric ``[..., D, D]`` with a gradient that stays finite at ties.

    ``dA = U [diag(dl) + K o (U^T dU)] U^T`` with ``K_ij = 1/(l_j - l_i)``. The eigenvectors of a
    tied pair are not differentiable: their ``K_ij`` is taken as 0, which is right for every loss
    that does not depend on the choice of basis inside the tied eigenspace.
    """

    @staticmethod
    def forward(a: Tensor, start: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
        """Return ascending eigenvalues ``[..., D]`` and eigenvectors ``[..., D, D]``."""
        near = None if start is None else batched(start)
        eigenvalues, basis = backends.get(backend).eigh(batched(a), near)
        return eigenvalues.reshape(a.shape[:-1]), basis.reshape(a.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the eigensystem."""
        ctx.save_for_backward(*output)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the symmetric gradient of ``a``."""
        eigenvalues, basis = ctx.saved_tensors
        row, column = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
        gap = column - row
        tolerance = reference.tie_tolerance(eigenvalues.shape[-1], eigenvalues.dtype)
        tied = gap.abs() <= tolerance * torch.maximum(row.abs(), column.abs())
        inner = torch.where(tied, 0.0, product(basis.mT, grads[1]) / torch.where(tied, 1.0, gap))
        inner = inner + torch.diag_embed(grads[0])
        grad = symmetrize(product(product(basis, inner), basis.mT))
        return {"a": grad}

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, start: Tensor | None, backend: str
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The function is batched over leading dimensions already."""
        a, start = _lead(info.batch_size, in_dims, a, start)
        return SymmetricEigh.apply(a, start, backend), (0, 0)


def inverse_factor(s: Tensor, kind: int, floor: float, backend: str) -> Tensor:
    """Return the whitening matrix ``W`` (``Y = Xc W``) of positive definite ``s``, differentiably.

    Args:
        s: ``[..., D, D]`` covariance with eps already added.
        kind: ``reference.ZCA``, ``PCA`` or ``CHOLESKY``.
        floor: what eigenvalues are clamped at from below (the eps that was added).
        backend: name of the backend whose eigensolver is used.
    """
    if kind == reference.ZCA:
        w: Tensor = MatrixPower.apply(s, None, -0.5, floor, backend)[0]
        return w
    if kind == reference.PCA:
        eigenvalues, basis = SymmetricEigh.apply(s, None, backend)
        scaled: Tensor = basis * eigenvalues.clamp(min=floor).rsqrt().unsqueeze(-2)
        return scaled
    lower, info = torch.linalg.cholesky_ex(s)
    lower = torch.where((info == 0)[..., None, None], lower, float("nan"))
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return inverse.mT
