"""The two passes of the backward over the rows.

    reduce:  sum_n g_n  and  A = sum_n xc_n g_n^T,  xc_n = x_n - mean
    apply:   dx_n = (gamma (g_n - p_n sum g)) W^T - p_n xc_n inner

Reduce reads X and G once per pair of channel blocks and writes D^2 + D values a chunk, which
:mod:`fastwhiten.kernels.partials` adds in a fixed order: no atomics. Apply reads X and G once per
block of output channels and writes dX. Both hold twice the operands of the forward in registers.
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
    half_in_double,
    kernel,
    layout_of,
    load_matrix,
    load_rows,
    or_dummy,
    plan_chunks,
    product,
    reduction_options,
    row_options,
    row_start,
    row_weight_of,
)
from .partials import sum_partials


@kernel("length", "size")
def backward_reduce_kernel(
    x,  # [M, C] or [N, C, L]
    grad,  # like x
    mean,  # [C] T
    partial_sum,  # [chunks, C] T
    partial_cross,  # [chunks, G, D, D] T
    samples: tl.int64,  # M, or N of planes
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    steps: tl.int32,  # tiles of a chunk
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Reduce one chunk of rows for one pair of channel blocks."""
    T: tl.constexpr = mean.dtype.element_ty
    program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    block_i = program % blocks
    local_i = block_i * BLOCK + tl.arange(0, BLOCK)
    local_j = program // blocks % blocks * BLOCK + tl.arange(0, BLOCK)
    group = (program // (blocks * blocks) % groups).to(tl.int64)
    chunk = (program // (blocks * blocks * groups)).to(tl.int64)
    channels = groups * size
    i, j = group * size + local_i, group * size + local_j  # channel numbers
    mask_i, mask_j = local_i < size, local_j < size
    center = tl.load(mean + i, mask=mask_i, other=0.0)
    cross = tl.full((BLOCK, BLOCK), 0.0, T)
    total = tl.full((BLOCK,), 0.0, T)
    for step in range(steps):
        m = (chunk * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        inside = m < samples * length
        start = row_start(m, channels, length, PLANES)
        # Rows beyond the last one have a gradient of zero, and so no part in either sum.
        xi = load_rows(x, start, i, inside, mask_i, length, T, PLANES) - center[None, :]
        g = load_rows(grad, start, j, inside, mask_j, length, T, PLANES)
        cross += product(tl.trans(xi), g)
        total += tl.sum(g, 0)
    where = ((chunk * groups + group) * size + local_i[:, None]) * size + local_j[None, :]
    tl.store(partial_cross + where, cross, mask=mask_i[:, None] & mask_j[None, :])
    if block_i == 0:
        tl.store(partial_sum + chunk * channels + j, total, mask=mask_j)


@kernel("length", "size")
def backward_apply_kernel(
    x,  # [M, C] or [N, C, L]
    grad,  # like x
    mean,  # [C] T
    grad_sum,  # [C] T
    matrix,  # [G, D, D] T
    inner,  # [G, D, D] T, symmetric
    gamma,  # [C] T
    weight,  # [M] T
    dx,  # like x
    uniform_bits: tl.int64,  # 1 / M
    samples: tl.int64,  # M, or N of planes
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    PLANES: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Compute one tile of rows of the gradient for one block of channels."""
    T: tl.constexpr = mean.dtype.element_ty
    program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    local = program % blocks * BLOCK + tl.arange(0, BLOCK)
    group = (program // blocks % groups).to(tl.int64)
    m = (program // (blocks * groups)).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = m < samples * length
    start = row_start(m, groups * size, length, PLANES)
    p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
    total = tl.full((BLOCK_ROWS, BLOCK), 0.0, T)
    base = group * size * size
    for first in range(0, size, SLICE):
        k = first + tl.arange(0, SLICE)
        channel = group * size + k
        mask = k < size
        g = load_rows(grad, start, channel, inside, mask, length, T, PLANES)
        g -= p[:, None] * tl.load(grad_sum + channel, mask=mask, other=0.0)[None, :]
        if HAS_GAMMA:
            g *= tl.load(gamma + channel, mask=mask, other=0.0)[None, :]
        w = load_matrix(matrix + base, local[None, :], k[:, None], size, T)  # W^T
        total += product(g, w)
        xc = load_rows(x, start, channel, inside, mask, length, T, PLANES)
        xc = (xc - tl.load(mean + channel, mask=mask, other=0.0)[None, :]) * -p[:, None]
        total += product(xc, load_matrix(inner + base, k[:, None], local[None, :], size, T))
    channel = group * size + local
    stride = length if PLANES else 1
    where = dx + start[:, None] + channel[None, :] * stride
    mask = inside[:, None] & (local < size)[None, :]
    tl.store(where, total.to(dx.dtype.element_ty), mask=mask)


def launch_backward_reduce(
    x: Tensor, grad: Tensor, mean: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Return ``sum_n g_n`` ``[C]`` and ``sum_n xc_n g_n^T`` ``[G, D, D]``."""
    rows, channels, length, planes = layout_of(x)
    size = channels // groups
    block = block_of(size)
    blocks = triton.cdiv(size, block)
    programs = groups * blocks * blocks
    most = 8 if mean.dtype == torch.float64 else 4
    half = half_in_double(x.dtype, mean.dtype)
    fixed = reduction_options(block, mean.dtype, 2 if half else most)
    # Eight warps spill in float32 planes at block 32 on sm_90.
    spills = ("warps",) if block == 32 and (half or mean.dtype == torch.float32) else ()

    def run(options: dict[str, int]) -> tuple[Tensor, Tensor]:
        steps, chunks = plan_chunks(rows, options["BLOCK_ROWS"], programs)
        sums, cross = mean.new_empty(chunks, channels), mean.new_empty(chunks, groups, size, size)
        backward_reduce_kernel[(programs * chunks,)](
            x,
            grad,
            mean,
            sums,
            cross,
            x.shape[0],
            length,
            size,
            groups,
            steps,
            PLANES=planes,
            BLOCK=block,
            **options,
        )
        grad_sum, cross = sum_partials(sums, cross)
        return grad_sum, cross

    shape_class = (*tuning.row_class(x, groups), mean.dtype)
    grad_sum, cross = tuning.launch(
        "backward_reduce", shape_class, x.device, tuning.configurations(fixed, spills), run
    )
    return grad_sum, cross


def launch_backward_apply(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    grad_sum: Tensor,
    matrix: Tensor,
    inner: Tensor,
    gamma: Tensor | None,
    row_weight: Tensor | None,
) -> Tensor:
    """Return the gradient of ``x``, in its dtype and layout."""
    rows, _, length, planes = layout_of(x)
    groups, size = matrix.shape[:2]
    if not x.numel():
        return torch.empty_like(x)
    block = block_of(size)
    blocks = triton.cdiv(size, block)
    fixed = row_options(block, mean.dtype)

    def run(options: dict[str, int]) -> Tensor:
        dx = torch.empty_like(x)
        backward_apply_kernel[(triton.cdiv(rows, options["BLOCK_ROWS"]) * groups * blocks,)](
            x,
            grad,
            mean,
            grad_sum,
            matrix,
            inner,
            or_dummy(gamma, mean),
            or_dummy(row_weight, mean),
            dx,
            bits(1.0 / rows),
            x.shape[0],
            length,
            size,
            groups,
            PLANES=planes,
            HAS_GAMMA=gamma is not None,
            WEIGHTED=row_weight is not None,
            BLOCK=block,
            SLICE=SLICE,
            **options,
        )
        return dx

    flags = (mean.dtype, gamma is not None, row_weight is not None)
    shape_class = (*tuning.row_class(x, groups), *flags)
    result: Tensor = tuning.launch(
        "backward_apply", shape_class, x.device, tuning.configurations(fixed), run
    )
    return result
