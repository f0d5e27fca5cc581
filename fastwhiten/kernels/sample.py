"""The sample side, where a group has no more rows than channels: M x M instead of D x D.

    scaled = sqrt(p) (x - mean),  K = scaled scaled^T = V diag(d) V^T,  t = sqrt((1 - rho) d + e)
    e = eps + rho sum(d) / D,  P = diag(1/t) V^T scaled,  Y = V P / sqrt(p)

Backward:

    Gv = V^T (G / sqrt(p)),  Fm = Gv P^T,  R = w Fm^T + (1 - w) Fm,  w = t_i / (t_i + t_j)
    I = diag(1/t)(Gv - (1 - rho) R P) - rho sum_i(Fm_ii / t_i^2) / D diag(t) P
    C = sqrt(p) V I,  dX = C - p sum_n C_n

All rows of a block of channels are one tile, so that a column's mean needs no second pass.
Statistics reads X, writes ``scaled`` and M^2 values a block, which
:mod:`fastwhiten.kernels.partials` adds in a fixed order; apply reads ``scaled``, writes P and Y.
Backward takes two passes: the first one reads G and P, writes Gv and Fm (M^2 values a block); the
second one reads Gv and P, replaces Gv by I and writes dX. What one product leaves for the next goes
through memory, in the cache: registers could not hold it beside the operands.
Deterministic: no atomics. Registers: one tile of 64 x 64 at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import (
    SLICE,
    WHOLE,
    bits,
    block_of,
    converted,
    device_function,
    divide,
    exact,
    half_in_double,
    kernel,
    or_dummy,
    product,
    product_of,
    root,
    row_weight_of,
)
from .partials import sum_partials

BLOCK = 64


@kernel("size")
def sample_statistics_kernel(
    x,  # [M, C]
    weight,  # [M] T
    mean,  # [C] T
    scaled,  # [M, C] T
    partial,  # [blocks, G, M, M] T
    uniform_bits: tl.int64,  # 1 / M
    rows: tl.int32,
    size: tl.int32,  # D
    groups: tl.int32,
    WEIGHTED: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
):
    """Centre and scale one block of a group's channels, and multiply its rows by each other."""
    T: tl.constexpr = mean.dtype.element_ty
    program = tl.program_id(0)
    channels = groups * size
    group = (program % groups).to(tl.int64)
    block = program // groups
    m = tl.arange(0, R)
    local = block * BLOCK + tl.arange(0, BLOCK)
    inside, mask = m < rows, local < size
    channel = group * size + local
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    tile_mask = inside[:, None] & mask[None, :]
    where = m[:, None].to(tl.int64) * channels + channel[None, :]
    # Relative to row 0, with weights to the heaviest row, as one without weight may lie anywhere:
    # |mean| >> std costs no digit then.
    origin = tl.argmax(p, 0).to(tl.int64) * channels if WEIGHTED else 0
    shift = converted(tl.load(x + origin + channel, mask=mask, other=0.0), T)
    tile = converted(tl.load(x + where, mask=tile_mask, other=0.0), T) - shift[None, :]
    center = divide(tl.sum(tile * p[:, None], 0), tl.sum(p, 0) + tl.full((BLOCK,), 0.0, T))
    tl.store(mean + channel, shift + center, mask=mask)
    tile = tl.where(tile_mask, (tile - center[None, :]) * root(p)[:, None], 0.0)
    tl.store(scaled + where, tile, mask=tile_mask)
    gram = product(tile, tl.trans(tile))
    i, j = m[:, None], m[None, :]
    lower = (i < rows) & (j <= i)  # stored twice: exactly symmetric
    out = partial + (block * groups + group) * rows * rows
    tl.store(out + i * rows + j, gram, mask=lower)
    tl.store(out + j * rows + i, gram, mask=lower)


@device_function
def sample_roots(
    eigenvalues, rho, eps, group, rows, size, T, R: tl.constexpr, SHRINK: tl.constexpr
):
    """Return ``(t, 1 - rho, rho)`` with ``t`` ``[R]``, 1 for padding."""
    m = tl.arange(0, R)
    d = tl.load(eigenvalues + group * rows + m, mask=m < rows, other=0.0)
    d = tl.where(d < 0.0, 0.0, d)  # a NaN stays
    if SHRINK:
        intensity = tl.load(rho + group)
        total = tl.sum(d, 0)
        e = eps + divide(intensity * total, tl.full((), 0.0, T) + size)
    else:
        intensity = tl.full((), 0.0, T)
        e = eps
    t = root((1.0 - intensity) * d + e)
    return tl.where(m < rows, t, 1.0), 1.0 - intensity, intensity


@kernel("size")
def sample_apply_kernel(
    scaled,  # [M, C] T
    eigenvalues,  # [G, M] T
    eigenvectors,  # [G, M, M] T
    weight,  # [M] T
    rho,  # [G] T
    y,  # [M, C]
    projected,  # [G, M, D] T
    uniform_bits: tl.int64,  # 1 / M
    eps_bits: tl.int64,
    rows: tl.int32,
    size: tl.int32,  # D
    groups: tl.int32,
    WEIGHTED: tl.constexpr,
    SHRINK: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Whiten one block of a group's channels."""
    T: tl.constexpr = scaled.dtype.element_ty
    program = tl.program_id(0)
    channels = groups * size
    group = (program % groups).to(tl.int64)
    local = program // groups * BLOCK + tl.arange(0, BLOCK)
    m = tl.arange(0, R)
    inside = m < rows
    mask = inside[:, None] & (local < size)[None, :]
    channel = group * size + local
    where = m[:, None].to(tl.int64) * channels + channel[None, :]
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    t, _, _ = sample_roots(eigenvalues, rho, exact(eps_bits, T), group, rows, size, T, R, SHRINK)
    v = eigenvectors + group * rows * rows
    first = program // groups * BLOCK
    rest = tl.minimum(size - first, BLOCK)
    tile = scaled + group * size + first
    white = product_of(v, 1, rows, tile, channels, 1, rows, rows, rest, T, R, BLOCK, SLICE)
    white = divide(white, t[:, None] + tl.full((R, BLOCK), 0.0, T))
    out = projected + group * rows * size + first
    tl.store(out + m[:, None] * size + tl.arange(0, BLOCK)[None, :], white, mask=mask)
    tl.debug_barrier()  # P is read back by other threads of this program
    result = product_of(v, rows, 1, out, size, 1, rows, rows, rest, T, R, BLOCK, SLICE)
    scale = root(tl.where(inside, p, 1.0))[:, None] + tl.full((R, BLOCK), 0.0, T)
    result = divide(result, scale)
    tl.store(y + where, result.to(y.dtype.element_ty), mask=mask)


@kernel("size")
def sample_cross_kernel(
    grad,  # [M, C]
    projected,  # [G, M, D] T
    eigenvectors,  # [G, M, M] T
    weight,  # [M] T
    turned,  # [G, M, D] T, Gv
    partial,  # [blocks, G, M, M] T
    uniform_bits: tl.int64,  # 1 / M
    rows: tl.int32,
    size: tl.int32,  # D
    groups: tl.int32,
    WEIGHTED: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Turn the gradient's rows, and add ``Gv P^T`` over one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0)
    channels = groups * size
    group = (program % groups).to(tl.int64)
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
        g = converted(tl.load(where, mask=inside[:, None] & (column < rest), other=0.0), T)
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


@kernel("size")
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
    uniform_bits: tl.int64,  # 1 / M
    eps_bits: tl.int64,
    rows: tl.int32,
    size: tl.int32,  # D
    groups: tl.int32,
    WEIGHTED: tl.constexpr,
    SHRINK: tl.constexpr,
    R: tl.constexpr,  # M rounded up to a block
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Compute the gradient of one block of a group's channels."""
    T: tl.constexpr = projected.dtype.element_ty
    program = tl.program_id(0)
    channels = groups * size
    group = (program % groups).to(tl.int64)
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


def serves(rows: int, channels: int) -> bool:
    """Return whether one program holds all rows, and int32 the offsets in a group's ``[M, D]``.

    Wider addresses would take registers of every launch, for more than 33 million channels.
    """
    return rows <= WHOLE and rows * channels < 2**31


def tile_options(rows: int, most: int = 8) -> dict[str, int]:
    """Return the launch options of a program whose tile is ``rows`` by 64 channels."""
    return {"num_warps": {16: 4, 32: 4, 64: most}[block_of(rows)], "num_stages": 1}


def launch_sample_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean ``[C]``, scaled rows ``[M, C]``, Gram matrices ``[G, M, M]``; :func:`serves`."""
    rows, channels = x.shape
    size = channels // groups
    blocks = triton.cdiv(size, BLOCK)

    def run(options: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
        mean, scaled = x.new_empty(channels, dtype=dtype), x.new_empty(x.shape, dtype=dtype)
        partial = x.new_empty(blocks, groups, rows, rows, dtype=dtype)
        sample_statistics_kernel[(blocks * groups,)](
            x,
            or_dummy(row_weight, x),
            mean,
            scaled,
            partial,
            bits(1.0 / rows),
            rows,
            size,
            groups,
            WEIGHTED=row_weight is not None,
            R=block_of(rows),
            BLOCK=BLOCK,
            **options,
        )
        (gram,) = sum_partials(partial)
        return mean, scaled, gram

    fixed = tile_options(rows, most=16)  # eight spill in half precision
    shape_class = (rows, channels, groups, x.dtype, dtype, row_weight is not None)
    mean, scaled, gram = tuning.launch(
        "sample_statistics", shape_class, x.device, tuning.configurations(fixed), run
    )
    return mean, scaled, gram


def launch_sample_apply(
    scaled: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return whitened rows ``[M, C]`` in ``out_dtype`` and ``P`` ``[G, M, D]``; :func:`serves`."""
    rows, channels = scaled.shape
    groups = eigenvalues.shape[0]
    size = channels // groups

    def run(options: dict[str, int]) -> tuple[Tensor, Tensor]:
        y = scaled.new_empty(scaled.shape, dtype=out_dtype)
        projected = scaled.new_empty(groups, rows, size)
        sample_apply_kernel[(triton.cdiv(size, BLOCK) * groups,)](
            scaled,
            eigenvalues,
            eigenvectors,
            or_dummy(row_weight, scaled),
            or_dummy(rho, scaled),
            y,
            projected,
            bits(1.0 / rows),
            bits(eps),
            rows,
            size,
            groups,
            WEIGHTED=row_weight is not None,
            SHRINK=rho is not None,
            R=block_of(rows),
            BLOCK=BLOCK,
            SLICE=SLICE,
            **options,
        )
        return y, projected

    flags = (scaled.dtype, out_dtype, row_weight is not None, rho is not None)
    most = 4 if half_in_double(out_dtype, scaled.dtype) else 8
    spills = ("warps",) if out_dtype != scaled.dtype == torch.float64 else ()
    configurations = tuning.configurations(tile_options(rows, most), spills)
    shape_class = (rows, channels, groups, *flags)
    y, projected = tuning.launch("sample_apply", shape_class, scaled.device, configurations, run)
    return y, projected


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
    sizes = (rows, size, groups)
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
