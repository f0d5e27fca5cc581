"""The D x D part of the backward, one program a group, one launch.

    F = V^T (A gamma) Q,  R = w F + (1 - w) F^T,  core = V R V^T
    inner = beta (1 - rho) core + beta rho trace(core) / D I,  dgamma = diag(W^T A)

ZCA: V = U diag(1/s), Q = U, w = s_i / (s_i + s_j): no gap is divided by. PCA: V = W, Q = I, w = l_i /
(l_i - l_j), 1/2 on ties. Cholesky: V = W, Q = I, w = 1 above the diagonal, 0 below, 1/2 on it.
Reads three D x D matrices, writes one. Deterministic; inner is exactly symmetric, because one triangle
is stored twice. Four products of matrices that stay in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import bits, block_of, divide, exact, load_matrix, or_dummy, product, root
from .eigh import warps_of
from .factor import _CHOLESKY, _ZCA, store_mirrored


@triton.jit
def mixing_weights(eigenvalues, tie, mask, T, N: tl.constexpr, KIND: tl.constexpr):
    """Return ``w`` ``[N, N]``; padding gets eigenvalue 1."""
    i = tl.arange(0, N)
    if KIND == _CHOLESKY:
        above = tl.where(i[:, None] < i[None, :], 1.0, 0.0)
        return tl.where(i[:, None] == i[None, :], 0.5, above).to(T)
    else:
        values = tl.load(eigenvalues + i, mask=mask, other=1.0)
        row = values[:, None] + tl.zeros((N, N), T)
        column = values[None, :] + tl.zeros((N, N), T)
        if KIND == _ZCA:
            row, column = root(row), root(column)
            return divide(row, row + column)
        else:
            gap = row - column
            tied = tl.abs(gap) <= tie * tl.maximum(row, column)
            return tl.where(tied, 0.5, divide(row, tl.where(tied, 1.0, gap)))


@triton.jit
def backward_matrix_kernel(
    cross,  # [G, D, D] T
    eigenvalues,  # [G, D] T
    basis,  # [G, D, D] T
    matrix,  # [G, D, D] T
    gamma,  # [C] T
    rho,  # [G] T
    inner,  # [G, D, D] T
    grad_gamma,  # [C] T
    beta_bits,
    tie_bits,
    size,  # D
    KIND: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    SHRINK: tl.constexpr,
    N: tl.constexpr,  # D rounded up to a block
):
    """Mix group ``program_id(0)``."""
    T: tl.constexpr = cross.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    offset = group * size * size
    i = tl.arange(0, N)
    inside = i < size
    a = load_matrix(cross + offset, i[:, None], i[None, :], size, T)
    outer = load_matrix(matrix + offset, i[:, None], i[None, :], size, T)
    tl.store(grad_gamma + group * size + i, tl.sum(outer * a, 0), mask=inside)
    if HAS_GAMMA:
        a *= tl.load(gamma + group * size + i, mask=inside, other=0.0)[None, :]
    if KIND == _ZCA:
        vectors = load_matrix(basis + offset, i[:, None], i[None, :], size, T)
        values = tl.load(eigenvalues + group * size + i, mask=inside, other=1.0)
        outer = vectors * divide(tl.full((N,), 1.0, T), root(values))[None, :]
        f = product(product(tl.trans(outer), a), vectors)
    else:
        f = product(tl.trans(outer), a)
    w = mixing_weights(eigenvalues + group * size, exact(tie_bits, T), inside, T, N, KIND)
    r = w * f + (1.0 - w) * tl.trans(f)
    core = product(product(outer, r), tl.trans(outer))
    if SHRINK:
        intensity = tl.load(rho + group)
        diagonal = i[:, None] == i[None, :]
        trace = tl.sum(tl.sum(tl.where(diagonal, core, 0.0), 1), 0)
        spread = divide(intensity * trace, tl.full((), 0.0, T) + size)
        core = (1.0 - intensity) * core + tl.where(diagonal, spread, 0.0)
    store_mirrored(inner + offset, exact(beta_bits, T) * core, size, N)


def launch_backward_matrix(
    cross: Tensor,
    eigenvalues: Tensor,
    basis: Tensor,
    matrix: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    kind: int,
    tie: float,
) -> tuple[Tensor, Tensor]:
    """Return ``inner`` ``[G, D, D]`` and the gradient of gamma ``[C]``; D at most WHOLE."""
    groups, size = cross.shape[:2]
    inner, grad_gamma = cross.new_empty(cross.shape), cross.new_empty(groups * size)
    backward_matrix_kernel[(groups,)](
        cross,
        eigenvalues,
        basis,
        matrix,
        or_dummy(gamma, cross),
        or_dummy(rho, cross),
        inner,
        grad_gamma,
        bits(batch_weight),
        bits(tie),
        size,
        KIND=kind,
        HAS_GAMMA=gamma is not None,
        SHRINK=rho is not None,
        N=block_of(size),
        num_warps=warps_of(size, cross.dtype),
    )
    return inner, grad_gamma
