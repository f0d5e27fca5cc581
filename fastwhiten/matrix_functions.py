"""Differentiable matrix functions behind whitening, safe where eigenvalues coincide.

``torch.linalg.eigh`` has a gradient that divides by eigenvalue gaps. The inverse square root does
not need it: with ``P = S^{1/2}`` its differential solves the Lyapunov equation
``P dP + dP P = dS``, whose solution divides by ``s_i + s_j`` only. Each Function here
differentiates into these same Functions, so any order of derivative exists. They carry
:func:`fastwhiten.whitening_matrix` and the double backward of :func:`fastwhiten.whiten`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends
from .backends import reference
from .backends.opaque import product
from .backends.reference import symmetrize
from .function import Function, backward_of


def batched(a: Tensor) -> Tensor:
    """Return ``[..., D, D]`` as ``[B, D, D]``, contiguous: what the raw ops take."""
    return a.reshape(-1, *a.shape[-2:]).contiguous()


class Lyapunov(Function):
    """Solve ``P Z + Z P = B`` for symmetric ``B``.

    ``P = S^{1/2}`` is given by the eigensystem ``(l, U)`` of ``S``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, b: Tensor, eigenvalues: Tensor, basis: Tensor) -> Tensor:
        """Return ``U [(U^T B U)_ij / (s_i + s_j)] U^T``.

        All arguments are ``[..., D, D]`` or ``[..., D]``.
        """
        root = eigenvalues.sqrt()
        rotated = product(product(basis.mT, b), basis)
        scaled = rotated / (root.unsqueeze(-1) + root.unsqueeze(-2))
        return symmetrize(product(product(basis, scaled), basis.mT))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep ``S``, the eigensystem and the solution."""
        s, _, eigenvalues, basis = inputs
        ctx.save_for_backward(s, eigenvalues, basis, output)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the gradients of ``S`` and ``B``.

        ``B`` gets ``Y = lyap(grad)``; ``P`` gets ``-(Y Z + Z Y)``, hence ``S`` its lyap.
        """
        s, eigenvalues, basis, z = ctx.saved_tensors
        y = Lyapunov.apply(s, symmetrize(grads[0]), eigenvalues, basis)
        grad_root = -symmetrize(y @ z + z @ y)
        return {"s": Lyapunov.apply(s, grad_root, eigenvalues, basis), "b": y}


class InverseSquareRoot(Function):
    """``S -> S^{-1/2}`` for symmetric positive definite ``[..., D, D]``.

    Also returns the eigensystem used.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(s: Tensor, floor: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(W, eigenvalues, basis)``.

        Eigenvalues are clamped at ``floor`` (rounding can go below).
        """
        eigenvalues, basis = backends.get(backend).eigh(batched(s))
        eigenvalues = eigenvalues.clamp(min=floor).reshape(s.shape[:-1])
        basis = basis.reshape(s.shape)
        return (
            symmetrize(product(basis * eigenvalues.rsqrt().unsqueeze(-2), basis.mT)),
            eigenvalues,
            basis,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep ``S``, ``W`` and the eigensystem; only ``W`` is differentiable."""
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """``W = P^{-1}``: ``P`` gets ``-W grad W``, and ``S`` its Lyapunov solution."""
        s, w, eigenvalues, basis = ctx.saved_tensors
        grad_root = -symmetrize(product(product(w, symmetrize(grads[0])), w))
        grad = Lyapunov.apply(s, grad_root, eigenvalues, basis)
        return {"s": grad}

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], s: Tensor, floor: float, backend: str
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The function is batched over leading dimensions already."""
        return InverseSquareRoot.apply(s.movedim(in_dims[0], 0), floor, backend), (0, 0, 0)


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
        given = [
            t
            if t is None
            else (t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0))
            for t, d in zip((a, start), in_dims, strict=False)
        ]
        first, near = (t if t is None else t.contiguous() for t in given)
        return SymmetricEigh.apply(first, near, backend), (0, 0)


def inverse_factor(s: Tensor, kind: int, floor: float, backend: str) -> Tensor:
    """Return the whitening matrix ``W`` (``Y = Xc W``) of positive definite ``s``, differentiably.

    Args:
        s: ``[..., D, D]`` covariance with eps already added.
        kind: ``reference.ZCA``, ``PCA`` or ``CHOLESKY``.
        floor: what eigenvalues are clamped at from below (the eps that was added).
        backend: name of the backend whose eigensolver is used.
    """
    if kind == reference.ZCA:
        w: Tensor = InverseSquareRoot.apply(s, floor, backend)[0]
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
