"""Eigensystems of a batch of small symmetric matrices, one program each.

    A = U diag(l) U^T, l ascending, the largest component of every column of U positive

by :mod:`fastwhiten.kernels.jacobi`. Reads D^2 values of a matrix (its lower triangle, mirrored)
and writes D^2 + D. No host synchronisation, unlike ``torch.linalg.eigh``. Deterministic: no
atomics, and one matrix never looks at another. The matrix and its eigenvectors stay in registers;
shared memory is what gathers and products exchange. Registers and shared memory of every
configuration: ``tools/triton_resources.json``. Timed by ``benchmarks/bench_eigh.py``.

It needs nothing else of this package: :func:`launch_eigh` says what it takes, and has an example.
To decompose a matrix in the middle of a kernel of one's own: :mod:`fastwhiten.kernels.jacobi`.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import WHOLE, block_of, device_function, kernel, load_matrix, power_of_two
from .jacobi import eigensystem, positive_pivot, ranks


@device_function
def load_symmetric(pointer, size, T: tl.constexpr, N: tl.constexpr):
    """Return ``[N, N]``: the lower triangle at ``pointer`` mirrored, padded with zeros."""
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, N)[None, :]
    return load_matrix(pointer, tl.maximum(i, j), tl.minimum(i, j), size, T)


@device_function
def is_finite(a):
    """Return whether every entry is finite, as a scalar."""
    # x - x is NaN for NaN and for infinities, and nothing is unequal to itself but NaN.
    bad = (a - a) != (a - a)
    return tl.max(tl.max(bad.to(tl.int32), 1), 0) == 0


@device_function
def store_system(
    values,  # [N]
    vectors,  # [N, N], in columns
    values_out,  # [D] T
    vectors_out,  # [D, D] T
    finite,
    size,
    N: tl.constexpr,
):
    """Store the eigensystem in ascending order, NaN if the matrix was not finite.

    Sorting is where things are stored: no permutation is carried out. Returns the ranks.
    """
    i = tl.arange(0, N)
    order = ranks(values, size, N)
    nan = float("nan")
    tl.store(values_out + order, tl.where(finite, values, nan), mask=i < size)
    mask = (i < size)[:, None] & (i < size)[None, :]
    where = vectors_out + i[:, None] * size + order[None, :]
    tl.store(where, tl.where(finite, vectors, nan), mask=mask)
    return order


@kernel()
def eigh_kernel(
    a_ptr,  # [B, D, D] T
    values_ptr,  # [B, D] T
    vectors_ptr,  # [B, D, D] T
    size: tl.int32,  # D
    rounds: tl.int32,  # D rounded up to a power of two
    N: tl.constexpr,  # D rounded up to a block
):
    """Decompose matrix ``program_id(0)``."""
    T: tl.constexpr = a_ptr.dtype.element_ty
    matrix = tl.program_id(0).to(tl.int64)
    a = load_symmetric(a_ptr + matrix * size * size, size, T, N)
    finite = is_finite(a)
    a = tl.where(finite, a, 0.0)
    values, vectors = eigensystem(a, N, rounds)
    row = tl.broadcast_to(tl.arange(0, N)[:, None], (N, N))
    vectors = positive_pivot(vectors, row, N)
    store_system(
        values,
        vectors,
        values_ptr + matrix * size,
        vectors_ptr + matrix * size * size,
        finite,
        size,
        N,
    )


def whole_options(size: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the launch options of a program that holds ``size x size`` matrices whole."""
    # Four to eight values of each matrix a thread in float32. At order 64, float64 has 16: twice
    # the threads could use half the registers only. What is loaded comes from the cache: slices
    # on their way would take registers for nothing.
    double = dtype == torch.float64
    warps = {16: 2, 32: 8 if double else 4, 64: 8 if double else 16}
    return {"num_warps": warps[block_of(size)], "num_stages": 1}


def whole_configurations(options: dict[str, int], dtype: torch.dtype) -> list[dict[str, int]]:
    """Return what a stage on whole matrices may be launched with, from its fixed ``options``."""
    # More warps leave a thread fewer registers: float64 spills, at order 16 (factor) as at 64.
    spills = ("warps",) if dtype == torch.float64 else ()
    return tuning.configurations(options, spills)


def launch_eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigensystems of a batch of symmetric matrices; no gradient, no synchronisation.

    Args:
        a: ``[B, D, D]`` float32 or float64, contiguous, on a GPU (on the CPU with
            TRITON_INTERPRET=1), D at most 64. The lower triangle is read. Any scale and any
            spectrum: indefinite, tied, singular, zero.

    Returns:
        Eigenvalues ``[B, D]``, ascending, and eigenvectors ``[B, D, D]`` in columns; in each the
        component of largest magnitude, the first of equals, is positive. A matrix with a non-finite
        entry gives NaN, and leaves the others alone.

    Raises:
        ValueError: not such a tensor.

    Note:
        Accuracy, interpreted, in units of rounding (``torch.finfo(dtype).eps``), of covariances of
        2 D rows and matrices of condition 1e8: residual ``|A U - U diag(l)| / |A|`` 3 to 4 at D =
        16, 10 to 11 at D = 64 (LAPACK's ``syevd`` 3 to 4, and 5 to 8); orthogonality
        ``|U^T U - I| / sqrt(D)`` 1 to 2 (LAPACK's 4 to 7); eigenvalues within 4 of the
        largest one, small ones too: that error is absolute, not relative.

    Example (``tests/kernels/test_jacobi.py`` runs it, on the CPU)::

        import torch
        from fastwhiten.kernels.eigh import launch_eigh

        a = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]], device="cuda")
        values, vectors = launch_eigh(a)
        assert torch.allclose(values, torch.tensor([[1.0, 3.0]], device="cuda"))
        assert torch.allclose(vectors * values.unsqueeze(-2) @ vectors.mT, a)
    """
    square = a.dim() == 3 and a.shape[1] == a.shape[2] <= WHOLE and a.is_contiguous()
    if not square or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"launch_eigh: expected contiguous [B, D, D] float32 or float64 of order {WHOLE} at "
            f"most, which one program holds in registers, got {list(a.shape)} {a.dtype} with "
            f"strides {list(a.stride())}; torch.linalg.eigh takes larger ones"
        )
    batch, size = a.shape[:2]
    values, vectors = a.new_empty(batch, size), a.new_empty(a.shape)
    if a.numel():
        outputs, sizes = (values, vectors), (size, power_of_two(size), block_of(size))
        tuning.launch(
            "eigh",
            (batch, size, a.dtype),
            a.device,
            whole_configurations(whole_options(size, a.dtype), a.dtype),
            lambda options: eigh_kernel[(batch,)](a, *outputs, *sizes, **options),
        )
    return values, vectors
