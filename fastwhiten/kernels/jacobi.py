"""A symmetric eigensolver inside one Triton program: parallel-order Jacobi, no indexing needed.

In round r every index i is paired with i XOR r. For r = 1 .. n-1 (n a power of two) these are n/2
disjoint pairs a round and every pair once a sweep. Each pair (p, q) is rotated so that a_pq = 0:

    delta = (a_qq - a_pp) / 2,  t = sign(delta) a_pq / (|delta| + sqrt(delta^2 + a_pq^2)),
    c = 1 / sqrt(1 + t^2),  s = t c.

Seen from either member the formula is the same with t of the other sign, so that the rotation of
all columns is ``c_j A[:, j] - t_j c_j A[:, j XOR r]``: one ``tl.gather`` for columns, one for rows
and one for the eigenvectors. ``j XOR r`` permutes the 32 banks of shared memory: no conflicts.

A device function for other kernels: :func:`eigensystem` gives eigenvalues and vectors of a matrix
that a program holds in registers. It makes no assumption beyond symmetry: indefinite, tied, graded
and zero matrices are fine. Deterministic; bounded (``SWEEPS``); the caller replaces a non-finite
matrix. A sweep is n - 1 rounds of three gathers and about 9 n^2 operations. A covariance takes six
sweeps at order 16 and eight or nine at order 64. A wide spectrum takes more: at order 64 condition
1e8 takes 14 in float32 and 15 in float64, rank 32 takes 13 and 20. Order 128 would spill to local
memory.

Example, a kernel of one's own (``tests/kernels/test_jacobi.py`` runs it; with TRITON_INTERPRET=1 on
CPU tensors)::

    import torch
    import triton
    import triton.language as tl

    from fastwhiten.kernels.jacobi import eigensystem

    @triton.jit
    def log_determinant_kernel(a, out, N: tl.constexpr):  # a [B, N, N], positive definite
        i = tl.arange(0, N)
        batch = tl.program_id(0).to(tl.int64)
        matrix = tl.load(a + batch * N * N + i[:, None] * N + i[None, :])
        eigenvalues, eigenvectors = eigensystem(matrix, N, N)
        tl.store(out + batch, tl.sum(tl.log(eigenvalues), 0))

    def log_determinants(a: torch.Tensor) -> torch.Tensor:  # N a power of two, 16 to 64
        out = a.new_empty(a.shape[0])
        log_determinant_kernel[(a.shape[0],)](a, out, N=a.shape[-1], num_warps=4)
        return out

A smaller matrix is padded with zeros to 16 or more; ``rounds`` is the power of two that holds its
order, so that no round is spent on padding. Whole batches, sorted, with signs fixed and non-finite
matrices kept apart: :func:`fastwhiten.kernels.eigh.launch_eigh`, or
``fastwhiten.symmetric_eigh(a, backend="triton")`` with gradients.
"""

from __future__ import annotations

import triton.language as tl

from .common import device_function, divide, product, root

# Convergence is quadratic, after a linear phase where many eigenvalues are rounding alone. The
# bound is for what theory does not exclude.
SWEEPS = tl.constexpr(30)


@device_function
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


@device_function
def rotations(d, other, off, first):
    """Return ``[N]`` tangents and cosines that rotate every pair's coupling away, as seen by each.

    Args:
        d: ``[N]`` the diagonal.
        other: ``[N]`` the diagonal at the partners.
        off: ``[N]`` the coupling with the partner, the same number for both.
        first: ``[N]`` whether the index is the smaller one of its pair.
    """
    EPS2: tl.constexpr = 2.0**-104 if d.dtype == tl.float64 else 2.0**-46  # rounding, squared
    delta = 0.5 * (other - d)
    square = off * off
    # The last term keeps 0 / 0 away; where it counts the pair is not active.
    tangent = off / (tl.abs(delta) + tl.sqrt(delta * delta + square + EPS2 * EPS2))
    # Relative to the diagonal, which keeps small eigenvalues; the second bound ends the work on an
    # indefinite matrix whose diagonal vanishes.
    active = square > tl.maximum(EPS2 * tl.abs(d * other), EPS2 * EPS2)
    tangent = tl.where(active, tangent, 0.0)
    tangent = tl.where((delta > 0.0) | ((delta == 0.0) & first), tangent, -tangent)
    # The tangent may be approximate, a rotation's columns must have length one.
    length = 1.0 + tangent * tangent
    one = tl.full(length.shape, 1.0, d.dtype)
    return tangent, divide(one, root(length))


@device_function
def diagonalize(a, N: tl.constexpr, rounds):
    """Return ``[N, N]``: approximate eigenvectors of ``a`` in rows.

    Sweeps go on while a rotation turned by more than the fourth root of rounding: those of the next
    sweep would be its square, and their couplings below rounding. Indices from ``rounds`` on are
    padding without couplings.
    """
    TURN: tl.constexpr = 2.0**-26 if a.dtype == tl.float64 else 2.0**-13
    index = tl.broadcast_to(tl.arange(0, N)[:, None], (N, N))
    lane = tl.broadcast_to(tl.arange(0, N)[None, :], (N, N))
    own = tl.arange(0, N)
    v = tl.where(index == lane, 1.0, 0.0).to(a.dtype)  # [N, N], eigenvectors so far
    sweep = tl.full((), 0, tl.int32)
    largest = tl.full((), 1.0, a.dtype)
    while (sweep < SWEEPS) & (largest > TURN):
        d = tl.sum(tl.where(index == lane, a, 0.0), 1)  # [N], the diagonal
        turned = tl.full((N,), 0.0, a.dtype)
        for r in range(1, rounds):
            partner = own ^ r
            first = own < partner
            off = tl.reshape(tl.gather(a, partner[:, None], 1), (N,))  # a[i, i XOR r]
            # Both members must see one number: rounding makes a[p, q] and a[q, p] two. Their mean
            # is the symmetric part; what differs is never rotated away: among eigenvalues that are
            # rounding alone it would turn pairs for ever, and mix them with the others.
            off = 0.5 * (off + tl.gather(off, partner, 0))
            other = tl.gather(d, partner, 0)
            tangent, cosine = rotations(d, other, off, first)
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
    return v


@device_function
def eigensystem(a, N: tl.constexpr, rounds):
    """Return eigenvalues ``[N]`` and eigenvectors ``[N, N]`` (in columns), unordered.

    One Newton-Schulz step takes back the orthogonality that hundreds of rotations have lost, and
    Rayleigh quotients with the matrix itself the error of the eigenvalues.

    Args:
        a: ``[N, N]`` symmetric, finite; rows and columns of padding are zero.
        N: order, a power of two of at least 16.
        rounds: power of two from which on indices are padding.
    """
    scale, inverse = power_of_two_scale(tl.max(tl.max(tl.abs(a), 1), 0))
    a = a * inverse
    rows = diagonalize(a, N, rounds)
    gram = product(rows, tl.trans(rows))
    rows = 1.5 * rows - 0.5 * product(gram, rows)
    vectors = tl.trans(rows)
    eigenvalues = tl.sum(vectors * product(a, vectors), 0) * scale
    return eigenvalues, vectors


@device_function
def positive_pivot(vectors, row, N: tl.constexpr):
    """Flip columns so that the component of largest magnitude, the first of equals, is positive."""
    magnitude = tl.abs(vectors)
    largest = tl.max(magnitude, 0)
    first = tl.min(tl.where(magnitude == largest[None, :], row, N), 0)
    pivot = tl.sum(tl.where(row == first[None, :], vectors, 0.0), 0)
    return tl.where(pivot < 0.0, -1.0, 1.0).to(vectors.dtype)[None, :] * vectors


@device_function
def ranks(values, size, N: tl.constexpr):
    """Return ``[N]`` int32: the ascending rank of each value, equal ones in order, padding last."""
    i = tl.arange(0, N)
    padded = tl.where(i < size, values, float("inf"))
    before = padded[:, None] < padded[None, :]
    equal = (padded[:, None] == padded[None, :]) & (i[:, None] < i[None, :])
    return tl.sum((before | equal).to(tl.int32), 0)
