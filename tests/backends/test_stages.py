"""Every stage of every backend against its definition in float64, and against plain PyTorch.

Truth and yardstick are one-line formulas or autograd, written here; nothing of
``backends/reference.py`` is used, so that the specification is tested like the kernels.
"""

import pytest
import torch
from torch import Tensor

from fastwhiten import backends
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64

KIND = {"zca": 0, "pca": 1, "cholesky": 2}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The stages differ from their yardstick in the order of sums, nothing else.
K, WHY = 4.0, "different order of summation"

# name: (M, C, G, L): rows if L is 0, else planes [M / L, C, L]
LAYOUTS = {
    "one channel": (5, 1, 1, 0),
    "odd rows": (67, 13, 1, 0),
    "fewer rows": (5, 24, 2, 0),
    "many groups": (70, 48, 12, 0),
    "groups of one": (33, 7, 7, 0),
    "wide": (150, 130, 1, 0),
    "tall": (3001, 8, 1, 0),
    "planes": (6 * 35, 12, 1, 35),
    "planes, groups": (5 * 64, 12, 3, 64),
    "long planes": (2 * 1111, 6, 2, 1111),
    "planes of one": (9, 4, 1, 1),
}


def acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def data(name: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    rows, channels, _, length = LAYOUTS[name]
    x = spectra.random(rows, channels, seed).to(dtype)
    if not length:
        return x
    return x.reshape(rows // length, length, channels).transpose(1, 2).contiguous()


def grouped(x: Tensor, groups: int) -> Tensor:
    """Rows or planes to ``[G, M, D]``."""
    rows = x if x.dim() == 2 else x.transpose(1, 2).reshape(-1, x.shape[1])
    return rows.reshape(rows.shape[0], groups, -1).transpose(0, 1)


def ungrouped(y: Tensor, like: Tensor) -> Tensor:
    rows = y.transpose(0, 1).reshape(y.shape[1], -1)
    if like.dim() == 2:
        return rows
    return rows.reshape(like.shape[0], like.shape[2], -1).transpose(1, 2)


def weights(rows: int, weighted: bool, dtype: torch.dtype, zeros: bool = True) -> Tensor | None:
    if not weighted:
        return None
    p = torch.rand(rows, dtype=torch.float64, generator=spectra.generator(3)) + 0.1
    if zeros:
        p[1::3] = 0.0
    return (p / p.sum()).to(dtype)


def moments(x: Tensor, p: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    parts = grouped(x, groups)
    p = torch.full_like(parts[0, :, :1], 1 / parts.shape[1]) if p is None else p.unsqueeze(1)
    mean = (parts * p).sum(1, keepdim=True)
    return mean.flatten(), ((parts - mean) * p).mT @ (parts - mean)


# A row of weight 0 (padding, say) may lie anywhere: differences from it would lose what counts.
@pytest.mark.parametrize("far", [1e4, 1e8])
@pytest.mark.parametrize("planes", [False, True], ids=["rows", "planes"])
@pytest.mark.parametrize("rows, channels", [(20, 40), (100, 12), (700, 70)])
def test_a_row_without_weight_may_lie_anywhere(
    rows: int, channels: int, planes: bool, far: float, backend: str
) -> None:
    x = spectra.random(rows, channels)
    x[0] = far
    p = weights(rows, True, torch.float64, zeros=False)
    assert p is not None
    p[0] = 0.0
    p /= p.sum()
    x, p = x.float(), p.float()
    given = x.reshape(10, -1, channels).transpose(1, 2).contiguous() if planes else x
    ours = backends.get(backend).statistics(given, p, 1, False)
    truth, yardstick = moments(x.double(), p.double(), 1), moments(x[1:], p[1:], 1)
    for a, b, c in zip(ours, truth, yardstick, strict=True):
        assert_close_to_fp64(a, b, c, K, WHY)


@pytest.mark.smoke
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("double", [False, True], ids=["default", "double"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", LAYOUTS)
def test_statistics(
    name: str, dtype: torch.dtype, double: bool, weighted: bool, backend: str
) -> None:
    rows, _, groups, _ = LAYOUTS[name]
    x = data(name, dtype)
    t = torch.float64 if double else acc(dtype)
    p = weights(rows, weighted, t)
    ours = backends.get(backend).statistics(x, p, groups, double)
    truth = moments(x.double(), None if p is None else p.double(), groups)
    flipped = None if p is None else p.flip(0)
    reverse = x.flip(0) if x.dim() == 2 else x.flip(0, 2)
    yardstick = moments(reverse.to(t), flipped, groups)
    for value, ref, same in zip(ours, truth, yardstick, strict=True):
        assert value.dtype == t
        assert_close_to_fp64(value, ref, same, K, WHY)
    assert torch.equal(ours[1], ours[1].mT), "the covariance is exactly symmetric"


def test_statistics_with_a_large_mean(backend: str) -> None:
    """The mean is subtracted before squaring: E[x^2] - E[x]^2 would lose every digit here."""
    x = spectra.large_mean(500, 6).float()
    _, covariance = backends.get(backend).statistics(x, None, 1, False)
    truth, yardstick = moments(x.double(), None, 1)[1], moments(x, None, 1)[1]
    assert_close_to_fp64(covariance, truth, yardstick, K, WHY)
    naive = x.T @ x / 500 - torch.outer(x.mean(0), x.mean(0))
    assert (naive - truth[0]).norm() > 100 * (covariance - truth).norm()


def symmetric(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    a = torch.randn(batch, size, size, dtype=torch.float64, generator=spectra.generator(size))
    return (a + a.mT).to(dtype)


def check_eigensystem(a: Tensor, eigenvalues: Tensor, vectors: Tensor, factor: float = 8.0) -> None:
    """Residual, orthogonality, order and sign; tolerances are backward errors of an eigensolver.

    LAPACK's are a small multiple of ``D * epsilon`` in norm; ``factor`` is that multiple.
    """
    size = a.shape[-1]
    tolerance = factor * size * torch.finfo(a.dtype).eps
    lower = a.tril().double()
    a64 = lower + a.tril(-1).double().mT
    u, diagonal = vectors.double(), eigenvalues.double()
    residual = (a64 @ u - u * diagonal.unsqueeze(-2)).norm(dim=(-2, -1))
    assert (residual <= tolerance * a64.norm(dim=(-2, -1))).all()
    identity = torch.eye(size, dtype=torch.float64)
    assert ((u.mT @ u - identity).norm(dim=(-2, -1)) <= tolerance).all()
    assert (eigenvalues.diff() >= 0).all()
    pivot = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    assert (pivot > 0).all(), "the component of largest magnitude is positive"


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 5), (7, 16), (20, 17), (2, 64), (1, 130)])
def test_eigh(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    # Twenty matrices are for threads that share them; a program of Triton sees one.
    a = symmetric(*shape, dtype)[: 2 if backend == "triton" else None]
    eigenvalues, vectors = backends.get(backend).eigh(a)
    assert eigenvalues.dtype == vectors.dtype == dtype
    check_eigensystem(a, eigenvalues, vectors)
    truth = torch.linalg.eigvalsh(a.double())
    assert_close_to_fp64(eigenvalues, truth, torch.linalg.eigvalsh(a), K, WHY, shape[1] ** 0.5)


@pytest.mark.parametrize("size", [1, 4, 16, 40])
def test_eigh_reads_the_lower_triangle(size: int, backend: str) -> None:
    a = symmetric(3, size, torch.float64)
    eigh = backends.get(backend).eigh
    for one, other in zip(eigh(a), eigh(a.tril() + 7.0 * torch.ones_like(a).triu(1)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(6, 6),
        torch.eye(6),
        torch.diag(torch.tensor([3.0, 1.0, 2.0, 2.0, 1.0, 0.0])),
        torch.ones(6, 6),
        1e-30 * torch.ones(6, 6) + 1e-30 * torch.eye(6),
        1e30 * torch.ones(6, 6) + 1e30 * torch.eye(6),
        torch.diag(torch.logspace(-18, 18, 6)),
    ],
    ids=["zero", "identity", "diagonal", "rank one", "tiny", "huge", "graded"],
)
def test_eigh_special_matrices(matrix: Tensor, backend: str) -> None:
    a = matrix.unsqueeze(0)
    check_eigensystem(a, *backends.get(backend).eigh(a))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [1, 3, 16, 33])
def test_eigh_keeps_nonfinite_matrices_apart(size: int, bad: float, backend: str) -> None:
    a = symmetric(3, size, torch.float32)
    clean = backends.get(backend).eigh(a)
    a[1, -1, 0] = bad
    for value, good in zip(backends.get(backend).eigh(a), clean, strict=True):
        assert value[1].isnan().all()
        assert torch.equal(value[0], good[0]) and torch.equal(value[2], good[2])


def covariances(groups: int, size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = spectra.random(4 * size + 3, groups * size, seed)
    return moments(x, None, groups)[1].to(dtype)


def shifted(
    s: Tensor, running: Tensor | None, rho: Tensor | None, batch_weight: float
) -> tuple[Tensor, Tensor]:
    """Blended and shrunk covariance, and what is added to its diagonal beside eps."""
    if running is not None:
        s = batch_weight * s + (1 - batch_weight) * running
    if rho is None:
        return s, torch.zeros_like(s[:, 0, 0])
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1)
    return (1 - rho).reshape(-1, 1, 1) * s, rho * mean


def matrices(kind: str, eps: float, *arguments, route: str = "eigh") -> Tensor:
    s, shift = shifted(*arguments)
    return torch.stack(
        [plain.whitening_matrix(s[g], kind, shift[g] + eps, route) for g in range(len(s))]
    )


FACTORS = [(1, 1), (1, 5), (5, 4), (2, 16), (3, 17), (1, 64), (9, 8)]


def blend_arguments(shape: tuple[int, int], blended: bool, shrunk: bool, dtype: torch.dtype):
    running = covariances(*shape, dtype, seed=5) if blended else None
    rho = torch.linspace(0.1, 0.9, shape[0]).to(dtype) if shrunk else None
    return covariances(*shape, dtype), running, rho, 0.3 if blended else 1.0


def doubled(*arguments):
    return [a.double() if isinstance(a, Tensor) else a for a in arguments]


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shrunk", [False, True], ids=["", "shrunk"])
@pytest.mark.parametrize("blended", [False, True], ids=["", "blended"])
@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("shape", FACTORS)
def test_factor(
    shape: tuple[int, int],
    kind: str,
    blended: bool,
    shrunk: bool,
    dtype: torch.dtype,
    backend: str,
) -> None:
    s, running, rho, weight = arguments = blend_arguments(shape, blended, shrunk, dtype)
    eps = 1e-3
    eigenvalues, basis, matrix = backends.get(backend).factor(
        s, running, rho, weight, eps, KIND[kind]
    )
    truth = matrices(kind, eps, *doubled(*arguments), route="iteration")
    # Permuting channels gives the yardstick rounding errors of its own where the formula is ours.
    yardstick = matrices(kind, eps, *arguments)
    scale = 16.0 * shape[1]  # D operations per entry, condition numbers of 10 in these inputs
    assert_close_to_fp64(matrix, truth, yardstick, K, WHY, scale)
    if kind == "zca":
        assert torch.equal(matrix, matrix.mT), "exactly symmetric"
    if kind == "cholesky":
        assert torch.equal(matrix, matrix.triu())
        assert eigenvalues.shape == basis.shape == (0,)
        return
    blend, shift = shifted(*doubled(*arguments))
    identity = torch.eye(shape[1], dtype=torch.float64)
    total = blend + (shift + eps).reshape(-1, 1, 1) * identity
    rebuilt = (basis.double() * eigenvalues.double().unsqueeze(-2)) @ basis.double().mT
    tolerance = 8 * shape[1] * torch.finfo(dtype).eps  # backward error of the eigensolver
    assert (rebuilt - total).norm() <= tolerance * total.norm()


@pytest.mark.parametrize("size", [129, 300])
def test_cholesky_of_several_blocks(size: int) -> None:
    """The factor's inverse is made by halves, the matrix of the gradient of triangular blocks."""
    native = backends.get("native")
    s, a = covariances(1, size, torch.float64), symmetric(1, size, torch.float64).triu(-size // 2)
    empty = a.new_empty(0)
    rho = torch.tensor([0.3], dtype=torch.float64)
    matrix = native.factor(s, None, rho, 1.0, 1e-3, KIND["cholesky"])[2]
    assert torch.equal(matrix, matrix.triu())
    identity = torch.eye(size, dtype=torch.float64)
    total = 0.7 * s + (0.3 * s.diagonal(0, 1, 2).mean() + 1e-3) * identity
    assert (matrix.mT @ total @ matrix - identity).norm() < 1e-12 * size
    inner = native.backward_matrix(a, empty, empty, matrix, None, rho, 0.4, KIND["cholesky"])[0]
    upper = (matrix.mT @ a).triu()
    core = matrix @ (upper + upper.triu(1).mT) @ matrix.mT
    expected = 0.4 * (0.7 * core + 0.3 * core.diagonal(0, 1, 2).mean() * identity)
    assert torch.equal(inner, inner.mT)
    assert (inner - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", KIND)
def test_factor_of_broken_groups(kind: str, backend: str) -> None:
    """Non-finite (and, for Cholesky, indefinite) groups are NaN, others keep their bits."""
    s = covariances(4, 5, torch.float32)
    factor = backends.get(backend).factor
    clean = factor(s, None, None, 1.0, 1e-3, KIND[kind])[2]
    s[1, 2, 2] = float("nan")
    s[3] = -torch.eye(5) if kind == "cholesky" else float("inf")
    broken = factor(s, None, None, 1.0, 1e-3, KIND[kind])[2]
    assert torch.equal(broken[0], clean[0]) and torch.equal(broken[2], clean[2])
    assert broken[1].isnan().any() and broken[3].isnan().any()
    upper = torch.ones(5, 5).triu() if kind == "cholesky" else torch.ones(5, 5)
    assert broken[1][upper > 0].isnan().all() and broken[3][upper > 0].isnan().all()


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_factor_clamps_rounding_below_zero(kind: str, backend: str) -> None:
    """A covariance of rank one has computed eigenvalues around -1e-7; eps = 1e-9 is the floor."""
    v = torch.linspace(1.0, 2.0, 7)
    eigenvalues, _, matrix = backends.get(backend).factor(
        torch.outer(v, v).unsqueeze(0), None, None, 1.0, 1e-9, KIND[kind]
    )
    assert torch.isfinite(matrix).all()
    assert (eigenvalues >= torch.tensor(1e-9)).all()
