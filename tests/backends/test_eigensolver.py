"""The CPU kernels' own eigensolver against LAPACK's, both measured in float64.

Residual and orthogonality may be K times LAPACK's plus a floor: QL turns every eigenvector by some
thousand rotations, divide and conquer by a few products, so their roundings differ. For divide and
conquer, which LAPACK does too, the median over the matrices is asked to be no worse.
"""

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten import backends
from tests.csrc import eigensystems
from tests.csrc.eigensystems import assert_solved
from tests.helpers import drvst, spectra

K = 4.0
FLOOR = 2.0  # rounding errors per column: a vector rounded once has half a one in each component

MEDIAN = 1.1  # measured: .6 to .85, and 1 where LAPACK solves
# Around one, two, four and eight vectors of each instruction set, and the changes of solver.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 140)
# Merges of two and of more levels, alone and side by side; products that threads share.
DIVIDED = (129, 200, 256, 511, 1024)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    size = eigenvalues.numel()
    noise = torch.randn(size, size, dtype=torch.float64, generator=spectra.generator(seed))
    q = torch.linalg.qr(noise)[0]
    a = (q * eigenvalues.double()) @ q.T
    return (a + a.T) / 2


def covariance(size: int) -> Tensor:
    x = spectra.random(3 * size + 2, size)
    return x.T @ x / x.shape[0]


def tridiagonal(size: int) -> Tensor:
    """Wilkinson's matrix: pairs of eigenvalues that agree to the last bit but one."""
    diagonal = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs()
    ones = torch.ones(size - 1, dtype=torch.float64)
    return torch.diag(diagonal) + torch.diag(ones, 1) + torch.diag(ones, -1)


MATRICES = {
    "covariance": covariance,
    "identity": lambda n: torch.eye(n, dtype=torch.float64),
    "zeros": lambda n: torch.zeros(n, n, dtype=torch.float64),
    "diagonal, descending": lambda n: torch.diag(torch.arange(n, 0, -1).double()),
    "all ones": lambda n: torch.ones(n, n, dtype=torch.float64),
    "two eigenspaces": lambda n: rotated(
        torch.cat([torch.ones(n // 2), 4 * torch.ones(n - n // 2)])
    ),
    "white but for rounding": lambda n: rotated(torch.ones(n)),
    "rank one": lambda n: rotated(torch.nn.functional.pad(torch.ones(1), (0, n - 1))),
    "condition 1e8": lambda n: rotated(torch.logspace(0, -8, n, dtype=torch.float64)),
    "indefinite": lambda n: rotated(torch.linspace(-1, 1, n, dtype=torch.float64)),
    "graded upwards": lambda n: graded(n, 1),
    "graded downwards": lambda n: graded(n, -1),
    "Wilkinson": tridiagonal,
    "two blocks": lambda n: torch.block_diag(covariance(n // 2 + 1), covariance(n - n // 2))[
        :n, :n
    ],
    "huge": lambda n: 1e30 * covariance(n),
    "tiny": lambda n: 1e-30 * covariance(n),
}


def graded(size: int, direction: int) -> Tensor:
    """Rows and columns that grow, or shrink, by six orders of magnitude."""
    scale = torch.logspace(0, direction * 6, size, dtype=torch.float64)
    return covariance(size) * scale.unsqueeze(1) * scale


def errors(a: Tensor, values: Tensor, vectors: Tensor) -> tuple[float, float]:
    """Return the residual relative to the matrix, and the distance from orthonormal columns."""
    wide, lam, u = a.double(), values.double(), vectors.double()
    scale = wide.norm() if wide.norm() > 0 else torch.ones((), dtype=torch.float64)
    identity = torch.eye(a.shape[-1], dtype=torch.float64)
    residual = (wide / scale) @ u - u * (lam / scale)
    return float(residual.norm()), float((u.T @ u - identity).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 15])
def test_rows_of_all_magnitudes(size: int, dtype: torch.dtype) -> None:
    """Squares of what is between rows underflow, wholly, partly, or where they are multiplied."""
    generator = spectra.generator(size)
    scale = 10.0 ** -torch.randint(0, 140, (2000, size), generator=generator).double()
    noise = torch.randn(2000, size, size, dtype=torch.float64, generator=generator)
    a = (noise + noise.mT) * scale.unsqueeze(1) * scale.unsqueeze(2)
    a = (a / a.abs().amax((1, 2), keepdim=True)).to(dtype)
    values, u = (t.double() for t in backends.get("native").eigh(a))
    residual = a.double() @ u - u * values.unsqueeze(1)
    off = u.mT @ u - torch.eye(size, dtype=torch.float64)
    largest = max(float(t.flatten(1).norm(dim=1).max()) for t in (residual, off))
    assert largest <= 8 * size**0.5 * torch.finfo(dtype).eps  # measured: up to 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("size", SIZES)
def test_as_accurate_as_lapack(size: int, name: str, dtype: torch.dtype) -> None:
    a = MATRICES[name](size).to(dtype).contiguous()
    values, vectors = (t[0] for t in backends.get("native").eigh(a.unsqueeze(0)))
    assert values.diff().ge(0).all()
    yardstick = errors(a, *torch.linalg.eigh(a))
    floor = FLOOR * size**0.5 * torch.finfo(dtype).eps
    for kind, ours, lapack in zip(
        ("residual", "orthogonality"), errors(a, values, vectors), yardstick, strict=True
    ):
        assert ours <= K * lapack + floor, f"{kind} {ours:.2e}, LAPACK {lapack:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", DIVIDED)
def test_divide_and_conquer(size: int, dtype: torch.dtype) -> None:
    """Of a merge nothing, all, all but one and some is deflated.

    Nothing: indefinite, negative. All: zeros, identity, diagonal, rank one. All but one: white but
    for rounding. Some, by rotations, most of them of vectors of both halves: tied, opposite pairs,
    condition 1e8, graded.
    """
    found = {**eigensystems.matrices(size), **{name: make(size) for name, make in MATRICES.items()}}
    ratios = []
    for name, wide in list(found.items())[:: 4 if size > 512 else 1]:  # seconds each
        a = ((wide + wide.mT) / 2).to(dtype).contiguous()
        values, vectors = (t[0] for t in backends.get("native").eigh(a.unsqueeze(0)))
        assert values.diff().ge(0).all(), name
        ours, lapack = errors(a, values, vectors), errors(a, *torch.linalg.eigh(a))
        floor = FLOOR * size**0.5 * torch.finfo(dtype).eps
        assert ours[0] <= 2 * lapack[0] + floor, f"{name}: residual {ours[0]}, LAPACK {lapack[0]}"
        assert ours[1] <= 2 * lapack[1] + floor, f"{name}: {ours[1]} off orthogonality"
        ratios.append([x / max(y, 1e-30) for x, y in zip(ours, lapack, strict=True)])
    residual, orthogonality = torch.tensor(ratios).median(0).values.tolist()
    assert max(residual, orthogonality) <= MEDIAN, f"median {residual}, {orthogonality}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype"), [(150, torch.float32), (760, torch.float32), (530, torch.float64)]
)
def test_bits_depend_on_no_thread_and_no_neighbour(size: int, dtype: torch.dtype) -> None:
    a = torch.stack([covariance(size), rotated(torch.ones(size)), tridiagonal(size)]).to(dtype)
    found = []
    # The baseline leaves these orders to LAPACK, whose bits depend on its threads.
    by_lapack = torch.ops.fastwhiten.cpu_capability() == "baseline"
    for count in (1,) if by_lapack else (1, 2, 3):
        torch.set_num_threads(count)
        found.append(backends.get("native").eigh(a))
    alone = [backends.get("native").eigh(m.unsqueeze(0)) for m in a]
    found.append(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)))
    for values, vectors in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(vectors, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [2, 7, 16, 32, 64, 100, 128, 176, 300])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_matrices_of_other_test_suites(backend: str, size: int, dtype: torch.dtype) -> None:
    a = drvst.stack(size, dtype)
    values, vectors = fastwhiten.symmetric_eigh(a, backend=backend)
    drvst.assert_within_gates(a, values, vectors)
    assert_solved(a, values, vectors, K)


@pytest.mark.parametrize("size", [6, 40, 128, 300])
def test_eigenvalues_against_float64(size: int) -> None:
    """Weyl: an eigenvalue moves by no more than the matrix was changed, D roundings of its norm."""
    a = covariance(size).float()
    values = backends.get("native").eigh(a.unsqueeze(0))[0][0]
    truth = torch.linalg.eigvalsh(a.double())
    bound = size * torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert float((values.double() - truth).abs().max()) <= bound


@pytest.mark.parametrize("size", [5, 64, 150])
def test_scaling_by_a_power_of_two_changes_no_vector(size: int) -> None:
    a = covariance(size).float().unsqueeze(0)
    values, vectors = backends.get("native").eigh(a)
    scaled_values, scaled_vectors = backends.get("native").eigh(a * 2.0**40)
    assert torch.equal(vectors, scaled_vectors)
    assert torch.equal(values * 2.0**40, scaled_values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 12, 33, 64, 128])
def test_many_small_matrices_are_each_their_own(size: int, dtype: torch.dtype) -> None:
    """Several are solved at once, in the lanes of a vector: one in trouble holds no other up."""
    made = [make(size) for make in MATRICES.values()]
    made += [rotated(torch.linspace(0.5, 2, size), seed) for seed in range(5)]
    a = torch.stack(made).to(dtype)
    values, vectors = backends.get("native").eigh(a)
    for i in range(a.shape[0]):
        alone = backends.get("native").eigh(a[i : i + 1])
        assert torch.equal(values[i], alone[0][0])
        assert torch.equal(vectors[i], alone[1][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_spoils_itself_only(bad: float) -> None:
    a = covariance(20).float().expand(20, 20, 20).clone()
    a[10, 3, 7] = a[10, 7, 3] = bad
    values, vectors = backends.get("native").eigh(a)
    assert values[10].isnan().all() and vectors[10].isnan().all()
    for i in (9, 11, 12):
        assert torch.equal(values[i], values[0]) and torch.equal(vectors[i], vectors[0])
    assert values[0].isfinite().all() and vectors[0].isfinite().all()
