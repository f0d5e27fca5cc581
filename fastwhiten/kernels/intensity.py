"""Estimated shrinkage intensities: how much of S becomes a multiple of the identity.

With S' = beta S + (1 - beta) S_running, a = tr(S'), b = |S'|^2, n = 1 / (sum_n p_n^2 beta^2):

    OAS:          ((1 - 2/D) b + a^2) / ((n + 1 - 2/D)(b - a^2/D))      (Chen et al. 2010, eq. 23)
    Ledoit-Wolf:  min(f / n, h) / h,  h = b - a^2/D,  f = sum p |xc|^4 - |S|^2   (2004, sec. 3.2)

clamped to [0, 1]; 1 where S' is a multiple of the identity already. Reads S (and S_running) once, X
once more for Ledoit-Wolf, writes one value a chunk and group. Deterministic: no atomics, chunks are
added in a fixed order. Registers: a few vectors, no matrix.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..backends.stages import LEDOIT_WOLF
from .common import (
    bits,
    block_of,
    device_function,
    divide,
    exact,
    half_in_double,
    kernel,
    layout_of,
    load_rows,
    or_dummy,
    plan_chunks,
    row_start,
    row_weight_of,
)

_LEDOIT_WOLF = tl.constexpr(LEDOIT_WOLF)
BLOCK = 512


@kernel("length", "size")
def fourth_moment_kernel(
    x,  # [M, C] or [N, C, L]
    mean,  # [C] T
    weight,  # [M] T
    partial,  # [chunks, G] T
    uniform_bits: tl.int64,  # 1 / M
    samples: tl.int64,  # M, or N of planes
    length: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    steps: tl.int32,  # tiles of a chunk
    PLANES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Add ``p_n |xc_n|^4`` over one chunk of rows and one group."""
    T: tl.constexpr = mean.dtype.element_ty
    program = tl.program_id(0)
    group = (program % groups).to(tl.int64)
    chunk = (program // groups).to(tl.int64)
    rows = samples * length
    total = tl.full((BLOCK_ROWS,), 0.0, T)
    for step in range(steps):
        m = (chunk * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        inside = m < rows
        start = row_start(m, groups * size, length, PLANES)
        square = tl.full((BLOCK_ROWS,), 0.0, T)
        for first in range(0, size, BLOCK):
            local = first + tl.arange(0, BLOCK)
            channel, mask = group * size + local, local < size
            xc = load_rows(x, start, channel, inside, mask, length, T, PLANES)
            xc -= tl.load(mean + channel, mask=mask, other=0.0)[None, :]
            square += tl.sum(xc * xc, 1)
        # A row beyond the last one has a weight of zero.
        p = row_weight_of(weight, m, inside, uniform_bits, T, WEIGHTED)
        total += p * square * square
    tl.store(partial + chunk * groups + group, tl.sum(total, 0))


@device_function
def covariance_sums(
    covariance,
    running,
    beta,
    group,
    size,
    T: tl.constexpr,
    BLEND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return ``(tr S', |S'|^2, |S|^2)`` of one group."""
    trace = tl.full((BLOCK,), 0.0, T)
    square = tl.full((BLOCK,), 0.0, T)
    own = tl.full((BLOCK,), 0.0, T)
    entries = size * size
    for start in range(0, entries, BLOCK):
        e = start + tl.arange(0, BLOCK)
        s = tl.load(covariance + group * entries + e, mask=e < entries, other=0.0)
        blended = s
        if BLEND:
            old = tl.load(running + group * entries + e, mask=e < entries, other=0.0)
            blended = beta * s + (1.0 - beta) * old
        trace += tl.where(e // size == e % size, blended, 0.0)
        square += blended * blended
        own += s * s
    return tl.sum(trace, 0), tl.sum(square, 0), tl.sum(own, 0)


@device_function
def effective_rows(weight, rows, T: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Return ``1 / sum_n p_n^2`` (Kish), M for uniform weights."""
    if WEIGHTED:
        total = tl.full((BLOCK,), 0.0, T)
        for start in range(0, rows, BLOCK):
            m = start + tl.arange(0, BLOCK)
            p = tl.load(weight + m, mask=m < rows, other=0.0)
            total += p * p
        return divide(tl.full((), 1.0, T), tl.sum(total, 0))
    else:
        return tl.full((), 0.0, T) + rows


@kernel()
def intensity_kernel(
    covariance,  # [G, D, D] T
    running,  # [G, D, D] T
    weight,  # [M] T
    fourth,  # [chunks, G] T, from fourth_moment_kernel
    rho,  # [G] T
    beta_bits: tl.int64,  # 1 without a running covariance
    rows: tl.int64,
    size: tl.int32,  # D
    groups: tl.int32,
    chunks: tl.int32,
    METHOD: tl.constexpr,
    BLEND: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Estimate the intensity of group ``program_id(0)``."""
    T: tl.constexpr = covariance.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    beta = exact(beta_bits, T)
    trace, square, own = covariance_sums(covariance, running, beta, group, size, T, BLEND, BLOCK)
    n = divide(effective_rows(weight, rows, T, WEIGHTED, BLOCK), beta * beta)
    d = tl.full((), 0.0, T) + size
    distance = square - divide(trace * trace, d)
    if METHOD == _LEDOIT_WOLF:
        moment = tl.full((BLOCK,), 0.0, T)
        for start in range(0, chunks, BLOCK):
            chunk = start + tl.arange(0, BLOCK)
            moment += tl.load(fourth + chunk * groups + group, mask=chunk < chunks, other=0.0)
        noise = divide(tl.sum(moment, 0) - own, n)
        numerator = tl.where(noise > distance, distance, noise)  # a NaN stays
        denominator = distance
    else:
        share = 1.0 - divide(tl.full((), 2.0, T), d)
        numerator = share * square + trace * trace
        denominator = (n + share) * distance
    positive = denominator > 0.0
    ratio = divide(numerator, tl.where(positive, denominator, 1.0))
    ratio = tl.where(ratio < 0.0, 0.0, tl.where(ratio > 1.0, 1.0, ratio))
    tl.store(rho + group, tl.where(positive, ratio, 1.0))


def launch_fourth_moments(
    x: Tensor, mean: Tensor, row_weight: Tensor | None, groups: int
) -> Tensor:
    """Return ``sum_n p_n |xc_n|^4`` ``[chunks, G]``, by chunks of rows."""
    rows, channels, length, planes = layout_of(x)
    size = channels // groups
    block = block_of(size)
    block_rows = 64 if block == 16 else 32
    steps, chunks = plan_chunks(rows, block_rows, groups)
    partial = mean.new_empty(chunks, groups)
    # Four spill in planes computed in float64, but eight where these are of half precision.
    warps = 8 if mean.dtype == torch.float64 and not half_in_double(x.dtype, mean.dtype) else 4
    fourth_moment_kernel[(chunks * groups,)](
        x,
        mean,
        or_dummy(row_weight, mean),
        partial,
        bits(1.0 / rows),
        x.shape[0],
        length,
        size,
        groups,
        steps,
        PLANES=planes,
        WEIGHTED=row_weight is not None,
        BLOCK=block,
        BLOCK_ROWS=block_rows,
        num_warps=warps,
        num_stages=1,
    )
    return partial


def launch_intensity(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    running: Tensor | None,
    row_weight: Tensor | None,
    batch_weight: float,
    method: int,
) -> Tensor:
    """Return the intensity ``rho`` ``[G]`` that ``method``, OAS or LEDOIT_WOLF, estimates."""
    groups, size = covariance.shape[:2]
    rows = layout_of(x)[0]
    fourth, chunks = covariance, 0
    if method == LEDOIT_WOLF:
        fourth = launch_fourth_moments(x, mean, row_weight, groups)
        chunks = fourth.shape[0]
    rho = torch.empty(groups, dtype=covariance.dtype, device=covariance.device)
    intensity_kernel[(groups,)](
        covariance,
        or_dummy(running, covariance),
        or_dummy(row_weight, covariance),
        fourth,
        rho,
        bits(1.0 if running is None else batch_weight),
        rows,
        size,
        groups,
        chunks,
        METHOD=method,
        BLEND=running is not None,
        WEIGHTED=row_weight is not None,
        BLOCK=BLOCK,
        num_warps=4,
        num_stages=1,
    )
    return rho
