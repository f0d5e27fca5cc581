"""Whitened rows: centre, multiply, scale and shift in one pass.

    y_n = ((x_n - mean) W) * gamma + beta

Reads X once per block of output channels (once for D <= 64) and W once a program, writes Y. No
reduction over rows: deterministic. A tile of rows and a block of W are the operands of one product,
accumulated in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import (
    SLICE,
    block_of,
    kernel,
    layout_of,
    load_matrix,
    load_rows,
    or_dummy,
    product,
    row_options,
    row_start,
)


@kernel("length", "size")
def apply_kernel(
    x,  # [M, C] or [N, C, L]
    mean,  # [C] T
    matrix,  # [G, D, D] T
    gamma,  # [C] T
    beta,  # [C] T
    y,  # like x
    samples: tl.int64,  # M, or N of planes
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    PLANES: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    HAS_BETA: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Whiten one tile of rows into one block of channels."""
    T: tl.constexpr = mean.dtype.element_ty
    program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    local = program % blocks * BLOCK + tl.arange(0, BLOCK)
    group = (program // blocks % groups).to(tl.int64)
    m = (program // (blocks * groups)).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = m < samples * length
    start = row_start(m, groups * size, length, PLANES)
    total = tl.full((BLOCK_ROWS, BLOCK), 0.0, T)
    for first in range(0, size, SLICE):
        k = first + tl.arange(0, SLICE)
        channel = group * size + k
        center = tl.load(mean + channel, mask=k < size, other=0.0)
        tile = load_rows(x, start, channel, inside, k < size, length, T, PLANES)
        w = load_matrix(matrix + group * size * size, k[:, None], local[None, :], size, T)
        total += product(tile - center[None, :], w)
    channel = group * size + local
    mask = local < size
    if HAS_GAMMA:
        total *= tl.load(gamma + channel, mask=mask, other=0.0)[None, :]
    if HAS_BETA:
        total += tl.load(beta + channel, mask=mask, other=0.0)[None, :]
    stride = length if PLANES else 1
    where = y + start[:, None] + channel[None, :] * stride
    tl.store(where, total.to(y.dtype.element_ty), mask=inside[:, None] & mask[None, :])


def launch_apply(
    x: Tensor, mean: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Return the whitened rows in the dtype and layout of ``x``."""
    rows, _, length, planes = layout_of(x)
    groups, size = matrix.shape[:2]
    if not x.numel():
        return torch.empty_like(x)
    block = block_of(size)
    blocks = triton.cdiv(size, block)
    fixed = row_options(block, mean.dtype)

    def run(options: dict[str, int]) -> Tensor:
        y = torch.empty_like(x)
        apply_kernel[(triton.cdiv(rows, options["BLOCK_ROWS"]) * groups * blocks,)](
            x,
            mean,
            matrix,
            or_dummy(gamma, mean),
            or_dummy(beta, mean),
            y,
            x.shape[0],
            length,
            size,
            groups,
            PLANES=planes,
            HAS_GAMMA=gamma is not None,
            HAS_BETA=beta is not None,
            BLOCK=block,
            SLICE=SLICE,
            **options,
        )
        return y

    flags = (mean.dtype, gamma is not None, beta is not None)
    shape_class = (*tuning.row_class(x, groups), *flags)
    y: Tensor = tuning.launch("apply", shape_class, x.device, tuning.configurations(fixed), run)
    return y
