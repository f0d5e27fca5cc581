"""The second stage of every reduction: partial results of chunks, added in a fixed order.

    out[e] = sum_c partial[c, e]

Reads ``chunks * count`` values once, writes ``count``. Deterministic: eight chunks are one tile,
added by a tree of fixed shape, tiles one after another. Shared memory: one row of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import kernel

BLOCK = 256
STEP = 8


@kernel("second_count")
def sum_partials_kernel(
    first,  # [chunks, first_count] T
    second,  # [chunks, second_count] T
    first_out,  # [first_count] T
    second_out,  # [second_count] T
    first_count: tl.int64,
    second_count: tl.int64,
    chunks: tl.int32,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Add two sets of partial results; the programs of the second one follow those of the first."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    other = entry - tl.cdiv(first_count, BLOCK) * BLOCK
    in_first = entry < first_count
    in_second = (other >= 0) & (other < second_count)
    total = tl.full((BLOCK,), 0.0, first.dtype.element_ty)
    for start in range(0, chunks, STEP):
        chunk = (start + tl.arange(0, STEP)).to(tl.int64)[:, None]
        where = first + chunk * first_count + entry[None, :]
        tile = tl.load(where, mask=(chunk < chunks) & in_first[None, :], other=0.0)
        where = second + chunk * second_count + other[None, :]
        tile += tl.load(where, mask=(chunk < chunks) & in_second[None, :], other=0.0)
        total += tl.sum(tile, 0)
    tl.store(first_out + entry, total, mask=in_first)
    tl.store(second_out + other, total, mask=in_second)


def sum_partials(*partials: Tensor) -> tuple[Tensor, ...]:
    """Return one or two tensors of partial results ``[chunks, ...]``, added over the chunks."""
    first, second = partials[0], partials[-1]
    chunks = first.shape[0]
    if chunks == 1:
        return tuple(p[0] for p in partials)
    outputs = tuple(p.new_empty(p.shape[1:]) for p in partials)
    counts = outputs[0].numel(), outputs[1].numel() if len(outputs) == 2 else 0
    grid = (sum(triton.cdiv(count, BLOCK) for count in counts),)
    sums = (outputs[0], outputs[-1])
    sum_partials_kernel[grid](
        first, second, *sums, *counts, chunks, BLOCK=BLOCK, STEP=STEP, num_warps=4
    )
    return outputs
