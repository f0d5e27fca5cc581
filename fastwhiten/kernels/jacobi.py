"""A symmetric eigensolver inside one Triton program: parallel-order Jacobi, no indexing needed.

In round r every index i is paired with i XOR r. For r = 1 .. n-1 (n a power of two) these are n/2
disjoint pairs a round and every pair once a sweep. Each pair (p, q) is rotated so that a_pq = 0:

    delta = (a_qq - a_pp) / 2,  t = sign(delta) a_pq / (|delta| + sqrt(delta^2 + a_pq^2)),
    c = 1 / sqrt(1 + t^2),  s = t c.

Seen from either member the formula is the same with t of the other sign, so that the rotation of
all columns is ``c_j A[:, j] - t_j c_j A[:, j XOR r]``: one ``tl.gather`` for columns, one for rows
and one for the eigenvectors. ``j XOR r`` permutes the 32 banks of shared memory: no conflicts.

A device function for other kernels: :func:`eigensystem` gives eigenvalues and vectors of a matrix
that a program holds in registers, from scratch or from a basis near the eigenvectors
(:func:`begin`: A is rotated into it first). It makes no assumption beyond symmetry: indefinite,
tied, graded and zero matrices are fine. Deterministic; bounded (``SWEEPS``); the caller replaces a
non-finite matrix. Order 64 takes about eight sweeps of 63 rounds; order 128 would spill to local
memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import load_matrix, product

# How far from the identity an entry of Q^T Q may be for Q to serve as a start, in roundings.
# Eigenvectors of the last step are within four; what was averaged, or rounded to a narrower type,
# is not, and would leave its error in the eigenvectors.
START_DEFECT = tl.constexpr(32.0)

# Convergence is quadratic: 6 to 9 sweeps at order 64. The cap is for what theory does not exclude.
SWEEPS = tl.constexpr(20)


@triton.jit
def power_of_two_scale(largest):
    """Return the power of two just below ``largest`` and its inverse, 1 for zero.

    Dividing by it is exact and keeps squares of entries inside the range of the type.
    """
    if largest.dtype == tl.float64:
        exponent = (largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        exponent = tl.minimum(tl.where(exponent == 0, 1023, exponent), 2045)
        scale = (exponent << 52).to(tl.float64, bitcast=True)
        inverse = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        exponent = tl.minimum(tl.where(exponent == 0, 127, exponent), 253)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return scale, inverse


@triton.jit
def begin(a, start, size, T: tl.constexpr, N: tl.constexpr, WARM: tl.constexpr):
    """Return what the sweeps turn: ``Q^T a Q`` and ``Q^T``, with Q the ``[D, D]`` at ``start``.

    ``a`` and the identity if not WARM, or if Q is not orthogonal (nor is what is not finite).
    """
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, N)[None, :]
    identity = tl.where(i == j, 1.0, 0.0).to(T)
    if WARM:
        rows = load_matrix(start, j, i, size, T) + tl.where(i < size, 0.0, identity)
        defect = tl.abs(product(rows, tl.trans(rows)) - identity)
        EPS: tl.constexpr = 2.0**-52 if T == tl.float64 else 2.0**-23
        bad = (defect > START_DEFECT * EPS) | (defect != defect)
        fine = tl.max(tl.max(bad.to(tl.int32), 1), 0) == 0
        turned = product(rows, product(a, tl.trans(rows)))
        turned = 0.5 * (turned + tl.trans(turned))
        return tl.where(fine, turned, a), tl.where(fine, rows, identity)
    else:
        return a, identity


@triton.jit
def diagonalize(a, v, N: tl.constexpr, ROUNDS: tl.constexpr):
    """Turn the rows of ``v`` ``[N, N]`` into approximate eigenvectors; return them and the sweeps.

    ``a`` is the matrix seen from the rows of ``v``. Sweeps go on while a rotation turned by more
    than the fourth root of rounding: those of the next sweep would be its square, and their
    couplings below rounding. Indices from ``ROUNDS`` on are padding without couplings. One function
    without calls: the interpreter takes a millisecond a call.
    """
    EPS2: tl.constexpr = 2.0**-104 if a.dtype == tl.float64 else 2.0**-46  # rounding, squared
    TURN: tl.constexpr = 2.0**-26 if a.dtype == tl.float64 else 2.0**-13
    index = tl.broadcast_to(tl.arange(0, N)[:, None], (N, N))
    lane = tl.broadcast_to(tl.arange(0, N)[None, :], (N, N))
    own = tl.arange(0, N)
    one = tl.full((N,), 1.0, a.dtype)
    sweep = 0
    largest = tl.full((), 1.0, a.dtype)
    while (sweep < SWEEPS) & (largest > TURN):
        d = tl.sum(tl.where(index == lane, a, 0.0), 1)  # [N], the diagonal
        turned = tl.zeros((N,), a.dtype)
        for r in range(1, ROUNDS):
            partner = own ^ r
            first = own < partner
            off = tl.reshape(tl.gather(a, partner[:, None], 1), (N,))  # a[i, i XOR r]
            # Both members must see one number: rounding has made a[p, q] and a[q, p] two.
            off = tl.where(first, off, tl.gather(off, partner, 0))
            other = tl.gather(d, partner, 0)
            delta = 0.5 * (other - d)
            square = off * off
            # The last term keeps 0 / 0 away; where it counts the pair is not active.
            tangent = off / (tl.abs(delta) + tl.sqrt(delta * delta + square + EPS2 * EPS2))
            # Relative to the diagonal, which keeps small eigenvalues; the second bound ends the
            # work on an indefinite matrix whose diagonal vanishes.
            active = square > tl.maximum(EPS2 * tl.abs(d * other), EPS2 * EPS2)
            tangent = tl.where(active, tangent, 0.0)
            tangent = tl.where((delta > 0.0) | ((delta == 0.0) & first), tangent, -tangent)
            # The tangent may be approximate, a rotation's columns must have length one.
            length = 1.0 + tangent * tangent
            if a.dtype == tl.float64:
                cosine = one / tl.sqrt(length)
            else:
                cosine = tl.div_rn(one, tl.sqrt_rn(length))
            sine = -tangent * cosine
            down = index ^ r
            a = cosine[None, :] * a + sine[None, :] * tl.gather(a, lane ^ r, 1)
            c, s = cosine[:, None], sine[:, None]
            a = c * a + s * tl.gather(a, down, 0)
            v = c * v + s * tl.gather(v, down, 0)
            d -= tangent * off
            turned = tl.maximum(turned, tl.abs(tangent))
        largest = tl.max(turned, 0)
        sweep += 1
    return v, sweep


@triton.jit
def eigensystem(a, start, size, N: tl.constexpr, ROUNDS: tl.constexpr, WARM: tl.constexpr):
    """Return eigenvalues ``[N]``, eigenvectors ``[N, N]`` (columns), both unordered, and sweeps.

    One Newton-Schulz step takes back the orthogonality that hundreds of rotations have lost, and
    Rayleigh quotients with the matrix itself the error of the eigenvalues.

    Args:
        a: ``[N, N]`` symmetric, finite; rows and columns of padding are zero.
        start: pointer to ``[D, D]``, orthogonal and near the eigenvectors; read if WARM.
        size: D.
        N: order, a power of two of at least 16.
        ROUNDS: power of two from which on indices are padding.
        WARM: begin from ``start``, which saves sweeps, instead of the identity.
    """
    scale, inverse = power_of_two_scale(tl.max(tl.max(tl.abs(a), 1), 0))
    a = a * inverse
    turned, rows = begin(a, start, size, a.dtype, N, WARM)
    rows, sweeps = diagonalize(turned, rows, N, ROUNDS)
    gram = product(rows, tl.trans(rows))
    rows = 1.5 * rows - 0.5 * product(gram, rows)
    vectors = tl.trans(rows)
    eigenvalues = tl.sum(vectors * product(a, vectors), 0) * scale
    return eigenvalues, vectors, sweeps


@triton.jit
def positive_pivot(vectors, row, N: tl.constexpr):
    """Flip columns so that the component of largest magnitude, the first of equals, is positive."""
    magnitude = tl.abs(vectors)
    largest = tl.max(magnitude, 0)
    first = tl.min(tl.where(magnitude == largest[None, :], row, N), 0)
    pivot = tl.sum(tl.where(row == first[None, :], vectors, 0.0), 0)
    return tl.where(pivot < 0.0, -1.0, 1.0).to(vectors.dtype)[None, :] * vectors


@triton.jit
def ranks(values, size, N: tl.constexpr):
    """Return ``[N]`` int32: the ascending rank of each value, equal ones in order, padding last."""
    i = tl.arange(0, N)
    padded = tl.where(i < size, values, float("inf"))
    before = padded[:, None] < padded[None, :]
    equal = (padded[:, None] == padded[None, :]) & (i[:, None] < i[None, :])
    return tl.sum((before | equal).to(tl.int32), 0)
