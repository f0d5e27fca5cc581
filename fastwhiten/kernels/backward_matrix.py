"""The D x D part of the backward, one program a group, one launch.

    F = V^T (A gamma) Q,  R = w F + (1 - w) F^T,  core = V R V^T
    inner = beta (1 - rho) core + beta rho trace(core) / D I,  dgamma = diag(W^T A)

ZCA: V = U diag(1/s), Q = U, w = s_i / (s_i + s_j): no gap is divided by. PCA: V = W, Q = I,
w = l_i / (l_i - l_j), 1/2 on ties. Cholesky: V = W, Q = I, w = 1 above the diagonal, 0 below, 1/2
on it. Reads three D x D matrices, writes one; what one product leaves for the next goes through
memory (two matrices a group, in the cache), which registers could not hold beside the operands.
Deterministic; inner is exactly symmetric, because one triangle is stored twice.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from . import tuning
from .common import (
    SLICE,
    bits,
    block_of,
    device_function,
    divide,
    exact,
    kernel,
    or_dummy,
    product,
    product_of,
    root,
)
from .eigh import whole_configurations, whole_options
from .factor import _CHOLESKY, _ZCA, store_mirrored


@device_function
def mixing_weights(i, j, row, column, tie, KIND: tl.constexpr):
    """Return ``w`` ``[R, K]`` at indices ``i`` ``[R, 1]`` and ``j`` ``[1, K]``.

    ``row`` and ``column`` are the eigenvalues there, ``[R, K]``; Cholesky has none.
    """
    if KIND == _CHOLESKY:
        above = tl.where(i < j, 1.0, 0.0).to(row.dtype)
        return tl.where(i == j, 0.5, above)
    elif KIND == _ZCA:
        row, column = root(row), root(column)
        return row / (row + column)
    else:
        gap = row - column
        tied = tl.abs(gap) <= tie * tl.maximum(row, column)
        return tl.where(tied, 0.5, row / tl.where(tied, 1.0, gap))


@device_function
def load_eigenvalues(pointer, index, size, T: tl.constexpr, KIND: tl.constexpr):
    """Return the eigenvalues at ``index`` in its shape, 1 for padding and for Cholesky."""
    if KIND == _CHOLESKY:
        return tl.where(index < size, 1.0, 1.0).to(T)
    else:
        return tl.load(pointer + index, mask=index < size, other=1.0)


@device_function
def mixed_product(
    outer,  # [D, D] T
    f,  # [D, D] T
    eigenvalues,  # [D] T
    tie,
    size,
    T: tl.constexpr,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Return ``V R`` ``[N, N]`` but for V's scale: R is made slice by slice, it is never whole."""
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, N)[None, :]
    column = load_eigenvalues(eigenvalues, j, size, T, KIND)
    total = tl.full((N, N), 0.0, T)
    for start in range(0, size, SLICE):
        k = (start + tl.arange(0, SLICE))[:, None]
        mask = (k < size) & (j < size)
        row = load_eigenvalues(eigenvalues, k, size, T, KIND) + tl.full((SLICE, N), 0.0, T)
        w = mixing_weights(k, j, row, column + tl.full((SLICE, N), 0.0, T), tie, KIND)
        r = tl.load(f + j * size + k, mask=mask, other=0.0)
        r += w * (tl.load(f + k * size + j, mask=mask, other=0.0) - r)
        if KIND == _ZCA:
            r /= root(row) * root(column)
        kt = (start + tl.arange(0, SLICE))[None, :]
        v = tl.load(outer + i * size + kt, mask=(i < size) & (kt < size), other=0.0)
        total += product(v, r)
    return total


@kernel("size")
def backward_matrix_kernel(
    cross,  # [G, D, D] T
    eigenvalues,  # [G, D] T
    basis,  # [G, D, D] T
    matrix,  # [G, D, D] T
    gamma,  # [C] T
    rho,  # [G] T
    scratch,  # [2, G, D, D] T
    inner,  # [G, D, D] T
    grad_gamma,  # [C] T
    beta_bits: tl.int64,
    tie_bits: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    KIND: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    SHRINK: tl.constexpr,
    N: tl.constexpr,  # D rounded up to a block
    SLICE: tl.constexpr,
):
    """Mix group ``program_id(0)``. What one product leaves for the next goes through scratch."""
    T: tl.constexpr = cross.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    offset = group * size * size
    i = tl.arange(0, N)
    inside = i < size
    square = inside[:, None] & inside[None, :]
    where = i[:, None] * size + i[None, :]
    one, two = scratch + offset, scratch + (groups + group) * size * size
    a = tl.load(cross + offset + where, mask=square, other=0.0)
    w = tl.load(matrix + offset + where, mask=square, other=0.0)
    tl.store(grad_gamma + group * size + i, tl.sum(w * a, 0), mask=inside)
    outer = (basis if KIND == _ZCA else matrix) + offset
    values = eigenvalues + group * size
    f = product_of(outer, 1, size, cross + offset, size, 1, size, size, size, T, N, N, SLICE)
    if HAS_GAMMA:
        f *= tl.load(gamma + group * size + i, mask=inside, other=0.0)[None, :]
    if KIND == _ZCA:  # V = U diag(1/s): the diagonal is divided by, here and in R
        scale = root(load_eigenvalues(values, i, size, T, KIND))
        tl.store(two + where, divide(f, scale[:, None] + tl.full((N, N), 0.0, T)), mask=square)
        tl.debug_barrier()
        f = product_of(two, size, 1, outer, size, 1, size, size, size, T, N, N, SLICE)
    tl.store(one + where, f, mask=square)
    tl.debug_barrier()
    left = mixed_product(outer, one, values, exact(tie_bits, T), size, T, KIND, N, SLICE)
    tl.store(two + where, left, mask=square)
    tl.debug_barrier()
    core = product_of(two, size, 1, outer, 1, size, size, size, size, T, N, N, SLICE)
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
    options = whole_options(size, cross.dtype)
    if block_of(size) == 16:
        options["num_warps"] = 4  # two spill eight bytes on sm_80
    inner, grad_gamma = cross.new_empty(cross.shape), cross.new_empty(groups * size)
    scratch = cross.new_empty(2, *cross.shape)
    flags = {
        "KIND": kind,
        "HAS_GAMMA": gamma is not None,
        "SHRINK": rho is not None,
        "N": block_of(size),
        "SLICE": SLICE,
    }
    inputs = (cross, eigenvalues, basis, matrix, or_dummy(gamma, cross), or_dummy(rho, cross))
    scalars = (bits(batch_weight), bits(tie), size, groups)
    tuning.launch(
        "backward_matrix",
        (groups, size, cross.dtype, *flags.values()),
        cross.device,
        whole_configurations(options, cross.dtype),
        lambda options: backward_matrix_kernel[(groups,)](
            *inputs, scratch, inner, grad_gamma, *scalars, **flags, **options
        ),
    )
    return inner, grad_gamma
