"""The gradient of the sample side, in two passes over blocks of channels.

    Gv = V^T (G / sqrt(p)),  Fm = Gv P^T,  R = w Fm^T + (1 - w) Fm,  w = t_i / (t_i + t_j)
    I = diag(1/t)(Gv - (1 - rho) R P) - rho sum_i(Fm_ii / t_i^2) / D diag(t) P
    C = sqrt(p) V I,  dX = C - p sum_n C_n

The first pass reads G and P, writes Gv and Fm (M^2 values a block of channels, added in a fixed
order: no atomics); the second one reads Gv and P, replaces Gv by I and writes dX. What one product
leaves for the next goes through memory, in the cache: registers could not hold it beside the
operands.
"""

from __future__ import annotations

import torch
import triton
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
    or_dummy,
    product,
    product_of,
    root,
    row_weight_of,
)
from .partials import sum_partials
from .sample import BLOCK, sample_roots, tile_options


@triton.jit
def sample_cross_kernel(
    grad,  # [M, C]
    projected,  # [G, M, D] T
    eigenvectors,  # [G, M, M] T
    weight,  # [M] T
    turned,  # [G, M, D] T, Gv
    partial,  # [blocks, G, M, M] T
    uniform_bits,  # 1 / M
    rows,
    channels,
    size,  # D
    groups,
    WEIGHTED: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Turn the gradient's rows, and add ``Gv P^T`` over one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    block = program // groups
    first = block * BLOCK
    rest = tl.minimum(size - first, BLOCK)
    m = tl.arange(0, R)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    v = eigenvectors + group * rows * rows
    tile = grad + group * size + first
    total = tl.full((R, BLOCK), 0.0, T)
    for start in range(0, rows, SLICE):
        k = start + tl.arange(0, SLICE)
        inside = k < rows
        p = row_weight_of(weight, k, inside, uniform_bits, T, WEIGHTED)
        scale = root(tl.where(inside, p, 1.0))[:, None] + tl.full((SLICE, BLOCK), 0.0, T)
        where = tile + k[:, None].to(tl.int64) * channels + column
        g = tl.load(where, mask=inside[:, None] & (column < rest), other=0.0).to(T)
        mask = (m < rows) & inside[None, :]
        left = tl.load(v + k[None, :] * rows + m, mask=mask, other=0.0)  # V^T
        total += product(left, divide(g, scale))
    out = group * rows * size + first
    tl.store(turned + out + m * size + column, total, mask=(m < rows) & (column < rest))
    tl.debug_barrier()  # Gv is read back by other threads of this program
    cross = product_of(
        turned + out, size, 1, projected + out, 1, size, rows, rest, rows, T, R, R, SLICE
    )
    j = tl.arange(0, R)[None, :]
    square = partial + (block * groups + group) * rows * rows
    tl.store(square + m * rows + j, cross, mask=(m < rows) & (j < rows))


@device_function
def mixed_rows(
    f,  # [M, M] T, Fm
    white,  # [M, D] T, P at the block's first channel
    t,  # [R] T
    t_ptr,  # [M] T, the same in memory: a tensor in registers cannot be cut into slices
    rows,
    size,  # D
    rest,  # channels of the block
    T: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Return ``R P`` ``[R, BLOCK]`` for one block of channels; R is made slice by slice."""
    m = tl.arange(0, R)
    inside = m < rows
    column = tl.arange(0, BLOCK)[None, :]
    mixed = tl.full((R, BLOCK), 0.0, T)
    for start in range(0, rows, SLICE):
        k = start + tl.arange(0, SLICE)
        pair = inside[:, None] & (k < rows)[None, :]
        row = t[:, None] + tl.full((R, SLICE), 0.0, T)
        other = tl.load(t_ptr + k, mask=k < rows, other=1.0)
        w = divide(row, row + other[None, :])
        f_mk = tl.load(f + m[:, None] * rows + k[None, :], mask=pair, other=0.0)
        f_km = tl.load(f + k[None, :] * rows + m[:, None], mask=pair, other=0.0)
        mask = (k < rows)[:, None] & (column < rest)
        p_k = tl.load(white + k[:, None] * size + column, mask=mask, other=0.0)
        mixed += product(w * f_km + (1.0 - w) * f_mk, p_k)
    return mixed


@triton.jit
def sample_backward_kernel(
    turned,  # [G, M, D] T, Gv; replaced by I
    projected,  # [G, M, D] T
    cross,  # [G, M, M] T
    eigenvalues,  # [G, M] T
    eigenvectors,  # [G, M, M] T
    roots,  # [blocks, G, M] T, scratch
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
    SLICE: tl.constexpr,
):
    """Compute the gradient of one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    first = program // groups * BLOCK
    rest = tl.minimum(size - first, BLOCK)
    m = tl.arange(0, R)
    column = tl.arange(0, BLOCK)[None, :]
    inside = m < rows
    mask = inside[:, None] & (column < rest)
    f = cross + group * rows * rows
    white = projected + group * rows * size + first
    inner = turned + group * rows * size + first
    eps = exact(eps_bits, T)
    t, keep, intensity = sample_roots(eigenvalues, rho, eps, group, rows, size, T, R, SHRINK)
    t_ptr = roots + program * rows
    tl.store(t_ptr + m, t, mask=inside)
    tl.debug_barrier()  # slices of t are read back by other threads of this program
    mixed = mixed_rows(f, white, t, t_ptr, rows, size, rest, T, R, BLOCK, SLICE)
    where = m[:, None] * size + column
    t_tile = t[:, None] + tl.full((R, BLOCK), 0.0, T)
    result = divide(tl.load(inner + where, mask=mask, other=0.0) - keep * mixed, t_tile)
    if SHRINK:
        diagonal = tl.load(f + m * (rows + 1), mask=inside, other=0.0)
        trace = tl.sum(divide(diagonal, t * t), 0)
        factor = divide(intensity * trace, tl.full((), 0.0, T) + size)
        result -= factor * t_tile * tl.load(white + where, mask=mask, other=0.0)
    tl.debug_barrier()
    tl.store(inner + where, result, mask=mask)
    tl.debug_barrier()
    v = eigenvectors + group * rows * rows
    centered = product_of(v, rows, 1, inner, size, 1, rows, rows, rest, T, R, BLOCK, SLICE)
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    centered *= root(p)[:, None]
    centered -= p[:, None] * tl.sum(centered, 0)[None, :]
    out = dx + m[:, None].to(tl.int64) * channels + group * size + first + column
    tl.store(out, centered.to(dx.dtype.element_ty), mask=mask)


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
    flags = {
        "WEIGHTED": row_weight is not None,
        "R": block_of(rows),
        "BLOCK": BLOCK,
        "SLICE": SLICE,
    }

    def run(options: dict[str, int]) -> Tensor:
        turned, dx = torch.empty_like(projected), torch.empty_like(grad)
        partial = projected.new_empty(blocks, groups, rows, rows)
        uniform, grid = bits(1.0 / rows), (blocks * groups,)
        both = {**flags, **options}
        sample_cross_kernel[grid](
            grad, projected, eigenvectors, weight, turned, partial, uniform, *sizes, **both
        )
        (cross,) = sum_partials(partial)
        roots = projected.new_empty(blocks, groups, rows)
        inputs = (projected, cross, eigenvalues, eigenvectors, roots, weight)
        scalars = (uniform, bits(eps), *sizes)
        sample_backward_kernel[grid](
            turned, *inputs, or_dummy(rho, projected), dx, *scalars, SHRINK=rho is not None, **both
        )
        return dx

    choice = (rows, groups * size, groups, grad.dtype, row_weight is not None, rho is not None)
    configurations = tuning.configurations(tile_options(rows))
    dx: Tensor = tuning.launch("sample_backward", choice, grad.device, configurations, run)
    return dx
