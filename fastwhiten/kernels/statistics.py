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
    device_function,
    divide,
    layout_of,
    load_rows,
    or_dummy,
    plan_chunks,
    product,
    row_options,
    row_start,
)

BLOCK_ENTRIES = 128
STEP = 8


# Without it, one step would be a constant, its loop unrolled, and its loads hoisted into a spill.
@device_function
def origin_start(origin, channels, length, PLANES: tl.constexpr, WEIGHTED: tl.constexpr):
    """Offset of channel 0 of the row that differences are taken from."""
    if WEIGHTED:
        return row_start(tl.load(origin), channels, length, PLANES)
    else:
        return 0


@triton.jit(do_not_specialize=["steps"])
def statistics_kernel(
    x,  # [M, C] or [N, C, L]
    weight,  # [M] T
    origin,  # [] int64, the row that means are relative to; read with weights only
    partial_weight,  # [chunks] T
    partial_mean,  # [chunks, C] T, relative to the origin
    partial_products,  # [chunks, G, D, D] T, blocks on and below the diagonal
    rows,
    channels,
    length,
    size,  # D
    groups,
    steps,  # tiles of a chunk
    PLANES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SINGLE: tl.constexpr,  # one block holds all channels of a group
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Reduce one chunk of rows for one pair of channel blocks."""
    T: tl.constexpr = partial_mean.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    block_j = program % blocks
    block_i = program // blocks % blocks
    group = program // (blocks * blocks) % groups
    chunk = program // (blocks * blocks * groups)
    if block_j > block_i:
        return
    local_i = block_i * BLOCK + tl.arange(0, BLOCK)
    local_j = block_j * BLOCK + tl.arange(0, BLOCK)
    i, j = group * size + local_i, group * size + local_j  # channel numbers
    mask_i, mask_j = local_i < size, local_j < size
    stride = length if PLANES else 1
    first = origin_start(origin, channels, length, PLANES, WEIGHTED)
    shift_i = tl.load(x + first + i * stride, mask=mask_i, other=0.0).to(T)
    shift_j = tl.load(x + first + j * stride, mask=mask_j, other=0.0).to(T)
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
        xi = load_rows(x, start, i, inside, mask_i, length, T, PLANES) - shift_i[None, :]
        tile_i = tl.sum(xi * p[:, None], 0) * inverse
        xi -= tile_i[None, :]
        if SINGLE:
            xj, tile_j = xi, tile_i
        else:
            xj = load_rows(x, start, j, inside, mask_j, length, T, PLANES) - shift_j[None, :]
            tile_j = tl.sum(xj * p[:, None], 0) * inverse
            xj -= tile_j[None, :]
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


@triton.jit
def combine_kernel(
    x,  # [M, C] or [N, C, L]: its origin
    origin,  # [] int64, as above
    partial_weight,  # [chunks] T
    partial_mean,  # [chunks, C] T
    partial_products,  # [chunks, G, D, D] T
    mean,  # [C] T
    covariance,  # [G, D, D] T
    channels,
    length,
    size,
    groups,
    chunks,
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
    program = tl.program_id(0).to(tl.int64)
    group = program // blocks
    entry = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = entry < per_group
    i, j = entry // size, entry % size
    a, b = tl.maximum(i, j), tl.minimum(i, j)
    total = tl.full((), 0.0, T)
    mean_a, mean_b = tl.full((BLOCK,), 0.0, T), tl.full((BLOCK,), 0.0, T)
    for start in range(0, chunks, STEP):
        chunk = (start + tl.arange(0, STEP)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        w = tl.load(partial_weight + chunk, mask=chunk < chunks, other=0.0)
        base = partial_mean + (chunk * channels + group * size)[:, None]
        mean_a += tl.sum(w[:, None] * tl.load(base + a[None, :], mask=mask, other=0.0), 0)
        mean_b += tl.sum(w[:, None] * tl.load(base + b[None, :], mask=mask, other=0.0), 0)
        total += tl.sum(w, 0)
    mean_a, mean_b = (
        divide(mean_a, total + tl.zeros_like(mean_a)),
        divide(mean_b, total + tl.zeros_like(mean_b)),
    )
    result = tl.full((BLOCK,), 0.0, T)
    for start in range(0, chunks, STEP):
        chunk = (start + tl.arange(0, STEP)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        w = tl.load(partial_weight + chunk, mask=chunk < chunks, other=0.0)
        base = partial_mean + (chunk * channels + group * size)[:, None]
        step_a = tl.load(base + a[None, :], mask=mask, other=0.0) - mean_a[None, :]
        step_b = tl.load(base + b[None, :], mask=mask, other=0.0) - mean_b[None, :]
        where = ((chunk * groups + group) * size)[:, None] * size + (a * size + b)[None, :]
        products = tl.load(partial_products + where, mask=mask, other=0.0)
        result += tl.sum(products + w[:, None] * step_a * step_b, 0)
    if not WEIGHTED:  # weights sum to one, counts do not
        result = divide(result, total + tl.zeros_like(result))
    tl.store(covariance + group * per_group + entry, result, mask=inside)
    stride = length if PLANES else 1
    first = origin_start(origin, channels, length, PLANES, WEIGHTED)
    shift = tl.load(x + first + (group * size + i) * stride, mask=inside, other=0.0).to(T)
    tl.store(mean + group * size + i, shift + mean_a, mask=inside & (j == 0))


def block_rows_of(block: int, dtype: torch.dtype) -> int:
    """Return the rows of a tile: as many as keep the operands of a product in registers."""
    if block == 64:
        return 16 if dtype == torch.float64 else 32
    return 32 if dtype == torch.float64 else 64


def launch_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return weighted mean ``[C]`` and covariance ``[G, D, D]`` in ``dtype``."""
    rows, channels, length, planes = layout_of(x)
    size = channels // groups
    block = block_of(size)
    blocks = triton.cdiv(size, block)
    programs = groups * blocks * blocks
    fixed = row_options(block, stages=1, most=8 if x.dtype == dtype == torch.float32 else 4)
    fixed["BLOCK_ROWS"] = block_rows_of(block, dtype)

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
            rows,
            channels,
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
        mean = x.new_empty(channels, dtype=dtype)
        covariance = x.new_empty(groups, size, size, dtype=dtype)
        combine_kernel[(groups * triton.cdiv(size * size, BLOCK_ENTRIES),)](
            x,
            origin,
            weight,
            partial_mean,
            products,
            mean,
            covariance,
            channels,
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

    shape_class = (*tuning.row_class(x, groups), dtype, row_weight is not None)
    mean, covariance = tuning.launch(
        "statistics", shape_class, x.device, tuning.configurations(fixed), run
    )
    return mean, covariance
