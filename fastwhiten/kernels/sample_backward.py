"""The gradient of the sample side, in two passes over the gradient and P.

    Gv = V^T (G / sqrt(p)),  Fm = Gv P^T,  R = w Fm^T + (1 - w) Fm,  w = t_i / (t_i + t_j)
    I = diag(1/t)(Gv - (1 - rho) R P) - rho sum_i(Fm_ii / t_i^2) / D diag(t) P
    C = sqrt(p) V I,  dX = C - p sum_n C_n

The first pass gives Fm (M^2 values a block of channels, added in a fixed order: no atomics), the second
one computes Gv again, which is cheaper than to keep it. Reads G and P twice, writes dX.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import bits, block_of, divide, exact, load_matrix, or_dummy, product, root
from .common import row_weight_of
from .partials import sum_partials
from .sample import BLOCK, sample_roots, warps_of_tile


@triton.jit
def load_turned(
    grad,  # [M, C]
    v,  # [R, R], eigenvectors
    p,  # [R]
    where,  # [R, BLOCK] int64
    mask,  # [R, BLOCK]
    inside,  # [R]
    T,
):
    """Return ``Gv`` ``[R, BLOCK]`` of one block of channels."""
    scale = root(tl.where(inside, p, 1.0))[:, None]
    tile = tl.load(grad + where, mask=mask, other=0.0).to(T)
    return product(tl.trans(v), divide(tile, scale + tl.zeros_like(tile)))


@triton.jit
def sample_cross_kernel(
    grad,  # [M, C]
    projected,  # [G, M, D] T
    eigenvectors,  # [G, M, M] T
    weight,  # [M] T
    partial,  # [blocks, G, M, M] T
    uniform_bits,  # 1 / M
    rows,
    channels,
    size,  # D
    groups,
    WEIGHTED: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
):
    """Add ``Gv P^T`` over one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    block = program // groups
    local = block * BLOCK + tl.arange(0, BLOCK)
    m = tl.arange(0, R)
    inside = m < rows
    mask = inside[:, None] & (local < size)[None, :]
    where = m[:, None].to(tl.int64) * channels + (group * size + local)[None, :]
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    v = load_matrix(eigenvectors + group * rows * rows, m[:, None], m[None, :], rows, T)
    turned = load_turned(grad, v, p, where, mask, inside, T)
    white = projected + group * rows * size + m[:, None] * size + local[None, :]
    cross = product(turned, tl.trans(tl.load(white, mask=mask, other=0.0)))
    out = partial + (block * groups + group) * rows * rows
    square = inside[:, None] & inside[None, :]
    tl.store(out + m[:, None] * rows + m[None, :], cross, mask=square)


@triton.jit
def sample_backward_kernel(
    grad,  # [M, C]
    projected,  # [G, M, D] T
    cross,  # [G, M, M] T
    eigenvalues,  # [G, M] T
    eigenvectors,  # [G, M, M] T
    weight,  # [M] T
    rho,  # [G] T
    dx,  # [M, C]
    uniform_bits,  # 1 / M
    eps_bits,
    rows,
    channels,
    size,  # D
    groups,
    WEIGHTED: tl.constexpr,
    SHRINK: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
):
    """Compute the gradient of one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    local = program // groups * BLOCK + tl.arange(0, BLOCK)
    m = tl.arange(0, R)
    inside = m < rows
    mask = inside[:, None] & (local < size)[None, :]
    where = m[:, None].to(tl.int64) * channels + (group * size + local)[None, :]
    square = group * rows * rows
    f = load_matrix(cross + square, m[:, None], m[None, :], rows, T)
    f_transposed = load_matrix(cross + square, m[None, :], m[:, None], rows, T)
    t, keep, intensity = sample_roots(
        eigenvalues, rho, exact(eps_bits, T), group, rows, size, T, R, SHRINK
    )
    row = t[:, None] + tl.zeros((R, R), T)
    w = divide(row, row + t[None, :])
    r = w * f_transposed + (1.0 - w) * f
    white = projected + group * rows * size + m[:, None] * size + local[None, :]
    white = tl.load(white, mask=mask, other=0.0)
    v = load_matrix(eigenvectors + square, m[:, None], m[None, :], rows, T)
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    turned = load_turned(grad, v, p, where, mask, inside, T)
    t_tile = t[:, None] + tl.zeros((R, BLOCK), T)
    inner = divide(turned - keep * product(r, white), t_tile)
    if SHRINK:
        diagonal = tl.sum(tl.where(m[:, None] == m[None, :], f, 0.0), 1)
        trace = tl.sum(divide(diagonal, t * t), 0)
        inner -= divide(intensity * trace, tl.zeros((), T) + size) * t_tile * white
    centered = product(v, inner) * root(p)[:, None]
    centered -= p[:, None] * tl.sum(centered, 0)[None, :]
    tl.store(dx + where, centered.to(dx.dtype.element_ty), mask=mask)


def launch_sample_backward(
    grad: Tensor,
    projected: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
) -> Tensor:
    """Return ``dx`` ``[M, C]`` in the dtype of ``grad``; M at most WHOLE."""
    groups, rows, size = projected.shape
    blocks = triton.cdiv(size, BLOCK)
    weight = or_dummy(row_weight, projected)
    sizes = (rows, groups * size, size, groups)
    flags = {"WEIGHTED": row_weight is not None, "R": block_of(rows), "BLOCK": BLOCK}
    warps = warps_of_tile(block_of(rows))
    partial = projected.new_empty(blocks, groups, rows, rows)
    uniform = bits(1.0 / rows)
    grid = (blocks * groups,)
    sample_cross_kernel[grid](
        grad, projected, eigenvectors, weight, partial, uniform, *sizes, **flags, num_warps=warps
    )
    cross = (
        partial.reshape(groups, rows, rows)
        if blocks == 1
        else partial.new_empty(groups, rows, rows)
    )
    if blocks > 1:
        sum_partials(partial, None, cross, None)
    dx = grad.new_empty(grad.shape)
    sample_backward_kernel[grid](
        grad,
        projected,
        cross,
        eigenvalues,
        eigenvectors,
        weight,
        or_dummy(rho, projected),
        dx,
        uniform,
        bits(eps),
        *sizes,
        SHRINK=rho is not None,
        **flags,
        num_warps=warps,
    )
    return dx
