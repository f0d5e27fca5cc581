"""What every Triton kernel here shares: addresses, exact scalars, block sizes.

Conventions:

* A value is converted to the accumulation type ``T`` (float32 or float64) as soon as it is loaded:
  arithmetic in bfloat16 is wrong in Triton's interpreter, and too coarse on a GPU.
* Products are ``tl.dot(..., input_precision="ieee")``: TF32 keeps ten bits of the mantissa.
* Programs are numbered along one axis: a grid's other axes end at 65535 blocks. The number is taken
  apart in int32, which divides faster, and counts rows and elements in int64.
* Sizes are run-time arguments of one type, so that another batch compiles nothing new (on the
  sample side: within a block of rows); nothing depends on the device that a program runs on.
  Triton knows whether 16 divides ``size`` and ``length`` where they are strides, see ``kernel``.
* Products run through slices of the inner dimension that are loaded in a loop. ``tl.dot`` in full
  precision keeps all of its operands in registers: 64 x 64 by 64 x 64 at once would spill.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction


@triton.jit
def _probe():
    """Tell a compiled kernel from an interpreted one."""


# True when TRITON_INTERPRET=1 was set before this module was imported: kernels then run on the CPU.
INTERPRETED = not isinstance(_probe, JITFunction)


def kernel(*strides):
    """Decorate a kernel: ``triton.jit``, but an integer with a type is compiled once.

    Triton compiles a kernel anew for an integer that is 1, one that 16 divides and one that needs
    64 bits. A type (``rows: tl.int64``) keeps it from that; all integers of a kernel have one.

    Args:
        strides: names of those that decide where loads begin. Whether 16 divides them stays known:
            for D = 64 in float32 apply would load 4 bytes at a time instead of 16, backward's
            reduction 17 times instead of 5, and take 176 registers instead of 80 (sm_90).
    """

    def decorate(function):
        kinds = function.__annotations__
        typed = [name for name, kind in kinds.items() if kind in ("tl.int32", "tl.int64")]
        return triton.jit(function, do_not_specialize=[n for n in typed if n not in strides])

    return decorate


def device_function(function):
    """Decorate what kernels call: ``triton.jit``, but plain Python in the interpreter.

    At every call of a jitted function the interpreter patches Triton's language anew, which takes a
    millisecond; the kernel around it has done that already.
    """
    return function if INTERPRETED else triton.jit(function)


# Inner dimension of one product in registers.
SLICE = 16
# The block edges that exist: a group of D channels is cut into blocks of the smallest one that
# holds it, or of the largest. Sixteen is the least that tl.dot takes in every dtype.
BLOCKS = (16, 32, 64)
# Orders of matrices that one program holds whole: eigensolver, factor and D x D backward.
WHOLE = BLOCKS[-1]


def block_of(size: int) -> int:
    """Return the block edge for ``size`` channels (or rows, on the sample side)."""
    return next((b for b in BLOCKS if size <= b), BLOCKS[-1])


def row_options(block: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the launch options of a pass over rows: warps, tiles on their way at a time, rows.

    Args:
        block: edge of a block of channels.
        dtype: of the products.
    """
    rows = 32 if block == 64 or dtype == torch.float64 else 64
    return {"num_warps": 8 if block == 64 else 4, "num_stages": 2, "BLOCK_ROWS": rows}


def reduction_options(block: int, dtype: torch.dtype, most: int) -> dict[str, int]:
    """Return the launch options of a reduction over rows, whose accumulator is a block, too.

    One stage: a pipelined tile that still has to be transposed and weighted takes registers that
    the accumulators need, and spills (ptxas of Triton 3.7.1, float32 planes). In float64 a tile has
    16 rows at block 64: 32 spill.

    Args:
        block: edge of a block of channels.
        dtype: of the products.
        most: number of warps at block 32, where four spill in some dtypes.
    """
    options = row_options(block, dtype) | {"num_stages": 1}
    if block == 32:
        options["num_warps"] = most
    if block == 64 and dtype == torch.float64:
        options["BLOCK_ROWS"] = 16
    return options


def half_in_double(input: torch.dtype, accumulation: torch.dtype) -> bool:
    """Return whether half precision is computed in float64; other numbers of warps spill there."""
    return input.itemsize == 2 and accumulation == torch.float64


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def bits(value: float) -> int:
    """Return the float64 ``value`` as an int64 for :func:`exact`.

    Triton passes Python floats as float32, which would cost a float64 computation half its digits.
    """
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


@device_function
def exact(value_bits, T: tl.constexpr):
    """Return the scalar behind :func:`bits` in ``T``."""
    return tl.full((), value_bits, tl.int64).to(tl.float64, bitcast=True).to(T)


@device_function
def divide(a, b):
    """``a / b`` rounded to nearest: Triton's float32 division is approximate."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@device_function
def root(a):
    """``sqrt(a)`` rounded to nearest: Triton's float32 square root is approximate."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@device_function
def product(a, b):
    """Matrix product in full precision, in the type of ``a``."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@device_function
def row_start(rows, channels, length, PLANES: tl.constexpr):
    """Offset of channel 0 of the given rows.

    ``[M, C]`` is read as it is; of planes ``[N, C, L]`` row ``m`` is ``x[m // L, :, m % L]``.
    """
    if PLANES:
        return (rows // length) * channels * length + rows % length
    else:
        return rows * channels


@device_function
def converted(value, T: tl.constexpr):
    """Return what was loaded in ``T``.

    Triton lays a product's operands out for the type that they were loaded in, and has no layout
    for float64 that was half precision (3.6 to 3.9: "fp64 don't support largeK MMA"). It looks back
    as far as the operations are elementwise: a sum over one element is not.
    """
    result = value.to(T)
    if T == tl.float64 and value.dtype.primitive_bitwidth == 16:
        result = tl.sum(tl.expand_dims(result, len(value.shape)), len(value.shape))
    return result


@device_function
def load_rows(
    pointer,  # rows [M, C] or planes [N, C, L]
    start,  # [R] int64, from row_start
    columns,  # [K] int64, channel numbers
    row_mask,  # [R]
    column_mask,  # [K]
    length,
    T: tl.constexpr,
    PLANES: tl.constexpr,
):
    """Return a tile ``[R, K]`` in ``T``, 0 outside of the mask."""
    stride = length if PLANES else 1
    mask = row_mask[:, None] & column_mask[None, :]
    if T == tl.float64 and pointer.dtype.element_ty.primitive_bitwidth == 16:
        tile = tl.load(pointer + start[:, None] + columns[None, :] * stride, mask=mask, other=0.0)
        return converted(tile, T)
    else:
        return tl.load(
            pointer + start[:, None] + columns[None, :] * stride, mask=mask, other=0.0
        ).to(T)


@device_function
def load_matrix(pointer, i, j, size, T: tl.constexpr):
    """Return ``a[i, j]`` of a row-major ``size x size`` matrix in ``T``, 0 outside of it.

    ``i`` and ``j`` are index tensors of shapes that broadcast: ``[R, 1]`` and ``[1, K]``; swap them
    for the transpose.
    """
    mask = (i < size) & (j < size)
    return tl.load(pointer + i * size + j, mask=mask, other=0.0).to(T)


@device_function
def product_of(
    a,  # [N, K] at strides (a_row, a_column)
    a_row,
    a_column,
    b,  # [K, P] at strides (b_row, b_column)
    b_row,
    b_column,
    rows,
    inner,
    columns,
    T: tl.constexpr,
    N: tl.constexpr,  # rows rounded up to a block
    P: tl.constexpr,  # columns rounded up to a block
    SLICE: tl.constexpr,
):
    """Return the product ``[N, P]`` of two matrices in memory, slice by slice; strides transpose.

    What another thread of the program has stored before needs a ``tl.debug_barrier()`` in between.
    """
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, P)[None, :]
    total = tl.full((N, P), 0.0, T)
    for start in range(0, inner, SLICE):
        k = start + tl.arange(0, SLICE)
        mask = (i < rows) & (k < inner)[None, :]
        left = tl.load(a + i * a_row + k[None, :] * a_column, mask=mask, other=0.0).to(T)
        mask = (k < inner)[:, None] & (j < columns)
        right = tl.load(b + k[:, None] * b_row + j * b_column, mask=mask, other=0.0).to(T)
        total += product(left, right)
    return total


@device_function
def row_weight_of(weight, rows, mask, uniform_bits, T: tl.constexpr, WEIGHTED: tl.constexpr):
    """Return the weights ``[R]`` of the given rows, 0 where masked; uniform ones are ``1/M``."""
    if WEIGHTED:
        return tl.load(weight + rows, mask=mask, other=0.0).to(T)
    else:
        return tl.where(mask, exact(uniform_bits, T), 0.0)


def layout_of(x: Tensor) -> tuple[int, int, int, bool]:
    """Return ``(M, C, L, planes)`` of rows ``[M, C]`` (``L`` = 1) or planes ``[N, C, L]``."""
    if x.dim() == 2 or x.shape[2] == 1:
        return x.shape[0], x.shape[1], 1, False
    return x.shape[0] * x.shape[2], x.shape[1], x.shape[2], True


# Row passes are cut into about this many programs: a few for each processor of a large GPU. It is a
# constant so that results do not depend on the device.
PROGRAMS = 512
# At most so many partial results: the second stage adds them one after another.
CHUNKS = 128


def plan_chunks(rows: int, block_rows: int, programs: int) -> tuple[int, int]:
    """Return ``(steps, chunks)`` of a reduction over rows: a chunk is ``steps`` tiles of rows.

    Args:
        rows: M.
        block_rows: rows of a tile.
        programs: programs of one chunk (groups times pairs of blocks).
    """
    tiles = max(triton.cdiv(rows, block_rows), 1)
    wanted = min(max(PROGRAMS // programs, 1), CHUNKS)
    steps = triton.cdiv(tiles, wanted)
    return steps, triton.cdiv(tiles, steps)


def or_dummy(t: Tensor | None, like: Tensor) -> Tensor:
    """Return ``t``, or for None a tensor whose pointer no kernel reads."""
    return like if t is None else t
