"""Weighted mean and covariance of the rows, in one pass over them and two launches.

With x' = x - x_o (the origin, row 0 or, with weights, the heaviest row, as one without weight may
lie anywhere: |mean| >> std then costs no digit) every tile of rows gives its weight w, mean m and
centred products C = sum_n p_n (x'_n - m)(x'_n - m)^T, and (Chan et al. 1979)

    w = w_1 + w_2,  d = m_2 - m_1,  m = m_1 + (w_2 / w) d,  C = C_1 + C_2 + (w_1 w_2 / w) d d^T.

Tiles of a chunk are combined in order inside a program, chunks by the second kernel. Reads X once
per pair of channel blocks (once for D <= 64), writes D^2 values a chunk and group. Deterministic:
no atomics, fixed order; exactly symmetric. Registers: one accumulator of 64 x 64 at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import (
    block_of,
    converted,
    device_function,
    divide,
    kernel,
    layout_of,
    load_rows,
    or_dummy,
    plan_chunks,
    product,
    reduction_options,
    row_start,
)

BLOCK_ENTRIES = 128
STEP = 8


@device_function
def load_centered(
    x,
    start,  # [R] int64, from row_start
    columns,  # [K] int64, channel numbers
    row_mask,  # [R]
    column_mask,  # [K]
    length,
    shift,  # [K] T
    p,  # [R] T
    inverse,  # 1 / sum(p)
    T: tl.constexpr,
    PLANES: tl.constexpr,
):
    """Return a tile ``[R, K]`` less its weighted mean, and that mean ``[K]`` less the shift."""
    tile = load_rows(x, start, columns, row_mask, column_mask, length, T, PLANES) - shift[None, :]
    mean = tl.sum(tile * p[:, None], 0) * inverse
    return tile - mean[None, :], mean


@device_function
def origin_start(origin, channels, length, PLANES: tl.constexpr, WEIGHTED: tl.constexpr):
    """Offset of channel 0 of the row that differences are taken from."""
    if WEIGHTED:
        return row_start(tl.load(origin), channels, length, PLANES)
    else:
        return 0


@kernel("length", "size")
def statistics_kernel(
    x,  # [M, C] or [N, C, L]
    weight,  # [M] T
    origin,  # [] int64, the row that means are relative to; read with weights only
    partial_weight,  # [chunks] T
    partial_mean,  # [chunks, C] T, relative to the origin
    partial_products,  # [chunks, G, D, D] T, blocks on and below the diagonal
    samples: tl.int64,  # M, or N of planes
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    steps: tl.int32,  # tiles of a chunk
    PLANES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SINGLE: tl.constexpr,  # one block holds all channels of a group
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Reduce one chunk of rows for one pair of channel blocks."""
    T: tl.constexpr = partial_mean.dtype.element_ty
    program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    block_j = program % blocks
    block_i = program // blocks % blocks
    group = (program // (blocks * blocks) % groups).to(tl.int64)
    chunk = (program // (blocks * blocks * groups)).to(tl.int64)
    if block_j > block_i:
        return
    local_i = block_i * BLOCK + tl.arange(0, BLOCK)
    local_j = block_j * BLOCK + tl.arange(0, BLOCK)
    i, j = group * size + local_i, group * size + local_j  # channel numbers
    mask_i, mask_j = local_i < size, local_j < size
    rows, channels = samples * length, groups * size
    stride = length if PLANES else 1
    first = origin_start(origin, channels, length, PLANES, WEIGHTED)
    shift_i = converted(tl.load(x + first + i * stride, mask=mask_i, other=0.0), T)
    shift_j = converted(tl.load(x + first + j * stride, mask=mask_j, other=0.0), T)
    mean_i, mean_j = tl.full((BLOCK,), 0.0, T), tl.full((BLOCK,), 0.0, T)
    products = tl.full((BLOCK, BLOCK), 0.0, T)
    total = tl.full((), 0.0, T)
    for step in range(steps):
        m = (chunk * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        inside = m < rows
        if WEIGHTED:
            p = tl.load(weight + m, mask=inside, other=0.0).to(T)
        else:
            p = inside.to(T)
        start = row_start(m, channels, length, PLANES)
        tile_weight = tl.sum(p, 0)
        inverse = tl.where(tile_weight > 0.0, 1.0 / tile_weight, 0.0)
        xi, tile_i = load_centered(
            x, start, i, inside, mask_i, length, shift_i, p, inverse, T, PLANES
        )
        if SINGLE:
            xj, tile_j = xi, tile_i
        else:
            xj, tile_j = load_centered(
                x, start, j, inside, mask_j, length, shift_j, p, inverse, T, PLANES
            )
        products += product(tl.trans(xi * p[:, None]), xj)
        joint = total + tile_weight
        share = tl.where(joint > 0.0, tile_weight / joint, 0.0)
        step_i, step_j = tile_i - mean_i, tile_j - mean_j
        products += (total * share) * step_i[:, None] * step_j[None, :]
        mean_i += share * step_i
        mean_j += share * step_j
        total = joint
    where = ((chunk * groups + group) * size + local_i[:, None]) * size + local_j[None, :]
    tl.store(partial_products + where, products, mask=mask_i[:, None] & mask_j[None, :])
    if block_i == block_j:
        tl.store(partial_mean + chunk * channels + i, mean_i, mask=mask_i)
        if (group == 0) & (block_i == 0):
            tl.store(partial_weight + chunk, total)


@device_function
def combined_means(
    weight,  # [chunks] T
    partial_mean,  # [chunks, C] T, at the group's first channel
    channels,
    chunks,
    a,  # [E] channels of the group
    b,  # [E]
    inside,  # [E]
    T: tl.constexpr,
    BLOCK: tl.constexpr,  # E
    STEP: tl.constexpr,
):
    """Return ``(w, mean_a, mean_b)``: the sum of weights, and two channels' means ``[E]``."""
    total = tl.full((), 0.0, T)
    mean_a, mean_b = tl.full((BLOCK,), 0.0, T), tl.full((BLOCK,), 0.0, T)
    for start in range(0, chunks, STEP):
        chunk = (start + tl.arange(0, STEP)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        w = tl.load(weight + chunk, mask=chunk < chunks, other=0.0)
        base = partial_mean + (chunk * channels)[:, None]
        mean_a += tl.sum(w[:, None] * tl.load(base + a[None, :], mask=mask, other=0.0), 0)
        mean_b += tl.sum(w[:, None] * tl.load(base + b[None, :], mask=mask, other=0.0), 0)
        total += tl.sum(w, 0)
    every = tl.broadcast_to(total, (BLOCK,))
    return every, divide(mean_a, every), divide(mean_b, every)


@kernel("length", "size")
def combine_kernel(
    x,  # [M, C] or [N, C, L]: its origin
    origin,  # [] int64, as above
    partial_weight,  # [chunks] T
    partial_mean,  # [chunks, C] T
    partial_products,  # [chunks, G, D, D] T
    mean,  # [C] T
    covariance,  # [G, D, D] T
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    chunks: tl.int32,
    PLANES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Combine the chunks for some entries of the covariance, and of the mean in column 0.

    Entry (i, j) is computed from (max, min): both halves are the same numbers.
    """
    T: tl.constexpr = mean.dtype.element_ty
    per_group = size * size
    blocks = tl.cdiv(per_group, BLOCK)
    program = tl.program_id(0)
    group = (program // blocks).to(tl.int64)
    entry = program % blocks * BLOCK + tl.arange(0, BLOCK)
    channels = groups * size
    inside = entry < per_group
    i, j = entry // size, entry % size
    a, b = tl.maximum(i, j), tl.minimum(i, j)
    means = partial_mean + group * size
    total, mean_a, mean_b = combined_means(
        partial_weight, means, channels, chunks, a, b, inside, T, BLOCK, STEP
    )
    result = tl.full((BLOCK,), 0.0, T)
    for start in range(0, chunks, STEP):
        chunk = (start + tl.arange(0, STEP)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        w = tl.load(partial_weight + chunk, mask=chunk < chunks, other=0.0)
        base = means + (chunk * channels)[:, None]
        step_a = tl.load(base + a[None, :], mask=mask, other=0.0) - mean_a[None, :]
        step_b = tl.load(base + b[None, :], mask=mask, other=0.0) - mean_b[None, :]
        where = ((chunk * groups + group) * size)[:, None] * size + (a * size + b)[None, :]
        products = tl.load(partial_products + where, mask=mask, other=0.0)
        result += tl.sum(products + w[:, None] * step_a * step_b, 0)
    if not WEIGHTED:  # weights sum to one, counts do not
        result = divide(result, total)
    tl.store(covariance + group * per_group + entry, result, mask=inside)
    stride = length if PLANES else 1
    first = origin_start(origin, channels, length, PLANES, WEIGHTED)
    shift = tl.load(x + first + (group * size + i) * stride, mask=inside, other=0.0).to(T)
    tl.store(mean + group * size + i, shift + mean_a, mask=inside & (j == 0))


def launch_combine(
    x: Tensor,
    row_weight: Tensor | None,
    origin: Tensor,
    partial_weight: Tensor,
    partial_mean: Tensor,
    products: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return mean ``[C]`` and covariance ``[G, D, D]`` from what the chunks of rows have left."""
    _, channels, length, planes = layout_of(x)
    chunks, groups, size, _ = products.shape
    mean, covariance = partial_mean.new_empty(channels), products.new_empty(products.shape[1:])
    combine_kernel[(groups * triton.cdiv(size * size, BLOCK_ENTRIES),)](
        x,
        origin,
        partial_weight,
        partial_mean,
        products,
        mean,
        covariance,
        length,
        size,
        groups,
        chunks,
        PLANES=planes,
        WEIGHTED=row_weight is not None,
        BLOCK=BLOCK_ENTRIES,
        STEP=STEP,
        num_warps=4,
    )
    return mean, covariance


def launch_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return weighted mean ``[C]`` and covariance ``[G, D, D]`` in ``dtype``."""
    rows, channels, length, planes = layout_of(x)
    size = channels // groups
    block = block_of(size)
    blocks = triton.cdiv(size, block)
    programs = groups * blocks * blocks
    most = 8 if x.dtype == dtype == torch.float32 else 4
    fixed = reduction_options(block, dtype, most)
    # Blocks of 64 spill: in float64 with sixteen warps on sm_90, in float32 with 16 rows on sm_80.
    spills = () if block < 64 else ("warps",) if dtype == torch.float64 else ("rows",)

    # On ties argmax takes the first.
    origin = x if row_weight is None else row_weight.argmax()

    def run(options: dict[str, int]) -> tuple[Tensor, Tensor]:
        steps, chunks = plan_chunks(rows, options["BLOCK_ROWS"], programs)
        weight = x.new_empty(chunks, dtype=dtype)
        partial_mean = x.new_empty(chunks, channels, dtype=dtype)
        products = x.new_empty(chunks, groups, size, size, dtype=dtype)
        statistics_kernel[(programs * chunks,)](
            x,
            or_dummy(row_weight, x),
            origin,
            weight,
            partial_mean,
            products,
            x.shape[0],
            length,
            size,
            groups,
            steps,
            PLANES=planes,
            WEIGHTED=row_weight is not None,
            SINGLE=blocks == 1,
            BLOCK=block,
            **options,
        )
        return launch_combine(x, row_weight, origin, weight, partial_mean, products)

    shape_class = (*tuning.row_class(x, groups), dtype, row_weight is not None)
    mean, covariance = tuning.launch(
        "statistics", shape_class, x.device, tuning.configurations(fixed, spills), run
    )
    return mean, covariance
