"""From a covariance to its whitening matrix, one program a group, one launch.

    S = (1 - rho) S' + (rho trace(S') / D + eps) I,  S' = beta S_batch + (1 - beta) S_running
    ZCA: W = U diag(l^-1/2) U^T   PCA: W = U diag(l^-1/2)   Cholesky: W = L^-T

S' is decomposed (:mod:`fastwhiten.kernels.jacobi`) or factored here; shifts only enter l. Reads
one or two D x D matrices, writes two and D eigenvalues. No host synchronisation. Deterministic;
groups do not look at each other, a non-finite (for Cholesky: or indefinite) one is NaN alone. W of
ZCA is exactly symmetric: one triangle is stored twice. Registers: the matrix and its eigenvectors.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ..backends.stages import CHOLESKY, ZCA
from . import tuning
from .common import (
    bits,
    block_of,
    device_function,
    divide,
    exact,
    kernel,
    or_dummy,
    power_of_two,
    product,
    root,
)
from .eigh import is_finite, load_symmetric, store_system, whole_configurations, whole_options
from .jacobi import eigensystem, positive_pivot

_CHOLESKY = tl.constexpr(CHOLESKY)
_ZCA = tl.constexpr(ZCA)


@device_function
def load_blended(covariance, running, beta, offset, size, T, N: tl.constexpr, BLEND: tl.constexpr):
    """Return ``beta S + (1 - beta) S_running`` ``[N, N]``, padded with zeros."""
    a = load_symmetric(covariance + offset, size, T, N)
    if BLEND:
        a = beta * a + (1.0 - beta) * load_symmetric(running + offset, size, T, N)
    return a


@device_function
def shrink_and_shift(a, rho, eps, group, size, T, N: tl.constexpr, SHRINK: tl.constexpr):
    """Return ``(1 - rho, rho trace(a) / D + eps)``."""
    if SHRINK:
        i = tl.arange(0, N)
        trace = tl.sum(tl.sum(tl.where(i[:, None] == i[None, :], a, 0.0), 1), 0)
        r = tl.load(rho + group)
        return 1.0 - r, divide(r * trace, tl.full((), 0.0, T) + size) + eps
    else:
        return tl.full((), 1.0, T), eps


@device_function
def store_mirrored(pointer, a, size, N: tl.constexpr):
    """Store the lower triangle of ``a`` and its mirror image: exactly symmetric."""
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, N)[None, :]
    mask = (i < size) & (j <= i)
    tl.store(pointer + i * size + j, a, mask=mask)
    tl.store(pointer + j * size + i, a, mask=mask)


@device_function
def inverse_lower(a, size, T, N: tl.constexpr):
    """Return ``L^-1`` ``[N, N]`` with ``a = L L^T``, and whether every pivot was positive.

    The elimination that makes ``L`` column by column, applied to the identity as well. Columns are
    picked by masks and sums: a tensor in registers cannot be indexed.
    """
    i = tl.arange(0, N)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0).to(T)
    good = tl.full((), 1, tl.int32)
    for k in range(size):
        column = tl.sum(tl.where(i[None, :] == k, a, 0.0), 1)
        pivot = tl.sum(tl.where(i == k, column, 0.0), 0)
        good = tl.where(pivot > 0.0, good, 0)  # a NaN is not
        diagonal = tl.broadcast_to(root(tl.where(pivot > 0.0, pivot, 1.0)), (N,))
        column = tl.where(i >= k, divide(column, diagonal), 0.0)
        row = divide(tl.sum(tl.where(i[:, None] == k, inverse, 0.0), 0), diagonal)
        below = tl.where(i > k, column, 0.0)
        a -= below[:, None] * column[None, :]
        inverse = tl.where(i[:, None] == k, row[None, :], inverse - below[:, None] * row[None, :])
    return inverse, good == 1


@kernel()
def cholesky_kernel(
    covariance,  # [G, D, D] T
    running,  # [G, D, D] T
    rho,  # [G] T
    matrix,  # [G, D, D] T
    beta_bits: tl.int64,
    eps_bits: tl.int64,
    size: tl.int32,  # D
    BLEND: tl.constexpr,
    SHRINK: tl.constexpr,
    N: tl.constexpr,  # D rounded up to a block
):
    """Factor group ``program_id(0)`` as ``L L^T`` and store ``W = L^-T``."""
    T: tl.constexpr = covariance.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    offset = group * size * size
    beta = exact(beta_bits, T)
    a = load_blended(covariance, running, beta, offset, size, T, N, BLEND)
    keep, shift = shrink_and_shift(a, rho, exact(eps_bits, T), group, size, T, N, SHRINK)
    i = tl.arange(0, N)
    diagonal = i[:, None] == i[None, :]
    a = keep * a + tl.where(diagonal, shift, 0.0)
    # Padding is an identity beside the matrix.
    a = tl.where((i < size)[:, None] & (i < size)[None, :], a, tl.where(diagonal, 1.0, 0.0))
    inverse, good = inverse_lower(a, size, T, N)
    result = tl.where(good, inverse, float("nan"))
    result = tl.where(i[:, None] >= i[None, :], result, 0.0)
    mask = (i < size)[:, None] & (i < size)[None, :]
    tl.store(matrix + offset + i[None, :] * size + i[:, None], result, mask=mask)


@kernel()
def factor_kernel(
    covariance,  # [G, D, D] T
    running,  # [G, D, D] T
    rho,  # [G] T
    eigenvalues,  # [G, D] T
    basis,  # [G, D, D] T
    matrix,  # [G, D, D] T
    beta_bits: tl.int64,
    eps_bits: tl.int64,
    size: tl.int32,  # D
    rounds: tl.int32,  # D rounded up to a power of two
    KIND: tl.constexpr,
    BLEND: tl.constexpr,
    SHRINK: tl.constexpr,
    N: tl.constexpr,  # D rounded up to a block
):
    """Decompose group ``program_id(0)`` and store eigenvalues, basis and W."""
    T: tl.constexpr = covariance.dtype.element_ty
    group = tl.program_id(0).to(tl.int64)
    offset = group * size * size
    beta = exact(beta_bits, T)
    a = load_blended(covariance, running, beta, offset, size, T, N, BLEND)
    keep, shift = shrink_and_shift(a, rho, exact(eps_bits, T), group, size, T, N, SHRINK)
    finite = is_finite(a)
    values, vectors = eigensystem(tl.where(finite, a, 0.0), N, rounds)
    row = tl.broadcast_to(tl.arange(0, N)[:, None], (N, N))
    vectors = positive_pivot(vectors, row, N)
    # S' is positive semidefinite: an eigenvalue below zero is rounding.
    values = keep * tl.where(values > 0.0, values, 0.0) + shift
    order = store_system(
        values, vectors, eigenvalues + group * size, basis + offset, finite, size, N
    )
    inverse_root = divide(tl.full((N,), 1.0, T), root(values))
    scaled = tl.where(finite, vectors * inverse_root[None, :], float("nan"))
    if KIND == _ZCA:
        store_mirrored(matrix + offset, product(scaled, tl.trans(vectors)), size, N)
    else:
        i = tl.arange(0, N)
        mask = (i < size)[:, None] & (i < size)[None, :]
        tl.store(matrix + offset + i[:, None] * size + order[None, :], scaled, mask=mask)


def launch_factor(
    covariance: Tensor,
    running: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    eps: float,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues ``[G, D]``, basis and W ``[G, D, D]``; D at most WHOLE."""
    groups, size = covariance.shape[:2]
    matrix = covariance.new_empty(covariance.shape)
    inputs = (covariance, or_dummy(running, covariance), or_dummy(rho, covariance))
    flags = {"BLEND": running is not None, "SHRINK": rho is not None, "N": block_of(size)}
    scalars = (bits(batch_weight), bits(eps), size)
    # What the choice of a configuration depends on, and where, and between which.
    shape_class = (groups, size, covariance.dtype, kind, *flags.values())
    options = whole_options(size, covariance.dtype)
    configurations = whole_configurations(options, covariance.dtype)
    choice = (shape_class, covariance.device, configurations)
    if kind == CHOLESKY:
        tuning.launch(
            "factor",
            *choice,
            lambda options: cholesky_kernel[(groups,)](
                *inputs, matrix, *scalars, **flags, **options
            ),
        )
        return covariance.new_empty(0), covariance.new_empty(0), matrix
    eigenvalues, basis = covariance.new_empty(groups, size), covariance.new_empty(covariance.shape)
    outputs = (eigenvalues, basis, matrix)
    flags["KIND"] = kind
    tuning.launch(
        "factor",
        *choice,
        lambda options: factor_kernel[(groups,)](
            *inputs, *outputs, *scalars, power_of_two(size), **flags, **options
        ),
    )
    return eigenvalues, basis, matrix
