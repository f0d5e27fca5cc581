"""The CUDA eigensolvers, emulated, against LAPACK in float64."""

import pytest
import torch

from tests.csrc.eigensystems import (
    K,
    assert_solved,
    errors,
    matrices,
    opposite_components,
    solve,
    stack,
)
from tests.csrc.emulation import EmulationError
from tests.helpers import drvst
from tests.helpers.spectra import generator

pytestmark = pytest.mark.emulated

DTYPES = {"float": torch.float32, "double": torch.float64}
LIMIT = {torch.float32: 128, torch.float64: 64}  # beyond, matrices are the library's
# Blocks refine what they find, and are as good as LAPACK. The floor is for matrices that it solves
# almost without rounding, as a diagonal one; 0.2 is needed in float32, 0.45 in float64.
AS_LAPACK = {"k": 1.0, "floor": 0.5}


def cases(*sizes: int, full: tuple[int, ...] = ()) -> pytest.MarkDecorator:
    """Parametrize by orders, those in ``full`` for make test-all, and dtypes that are solved."""
    return pytest.mark.parametrize(
        ("size", "dtype"),
        [
            pytest.param(n, t, marks=[pytest.mark.full] * (n in full), id=f"{n}-{name}")
            for n in (*sizes, *full)
            for name, t in DTYPES.items()
            if n <= LIMIT[t]
        ],
    )


# A warp's arrays have 4, 8 or 16 rows, a block's 32, 64 or 128, and zeros where a matrix ends.
WARP = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16)
BLOCK = (17, 32, 33, 64, 65)
BLOCK_MORE = (31, 48, 63, 96, 127, 128)


@pytest.mark.slow
@cases(*WARP, *BLOCK, full=BLOCK_MORE)
def test_every_spectrum(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    forward = solve(a)
    assert_solved(a, *forward[:2], **(AS_LAPACK if size > WARP[-1] else {}))
    few = slice(0, 3 if size > 64 else None)  # the large ones take seconds each
    for before, after in zip(forward, solve(a[few], order="reversed"), strict=True):
        assert torch.equal(before[few], after), "the order of threads shows"


@cases(9, 16)
def test_few_small_matrices_take_a_block_each(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    by_warps, by_blocks = solve(a), solve(a, few_matrices=len(a))
    assert not torch.equal(by_warps[1], by_blocks[1])
    assert_solved(a, *by_blocks[:2], **AS_LAPACK)
    again = solve(a, few_matrices=len(a), start=by_blocks[1])
    assert_solved(a, *again[:2], **AS_LAPACK)
    assert (again[2] <= by_blocks[2]).all()


@pytest.mark.slow
@cases(7, 17, 64, full=(16, 32, 48, 100, 128))
def test_matrices_of_other_test_suites(size: int, dtype: torch.dtype) -> None:
    """As good as LAPACK, but for clusters of an indefinite matrix, which is rounded as shifted."""
    a = drvst.stack(size, dtype)
    values, vectors, _ = solve(a)
    assert_solved(a, values, vectors, k=1.0 if size > WARP[-1] else K, floor=0.9)
    drvst.assert_within_gates(a, values, vectors)


@pytest.mark.smoke
@pytest.mark.parametrize("by", ["warp", "block"])
def test_the_first_of_two_largest_components_is_positive(by: str) -> None:
    a = opposite_components()[by]
    values, vectors, _ = solve(a)
    assert_solved(a, values, vectors)
    first = vectors[0, :, 0]
    assert first.max() == -first.min()
    assert first.argmax() < first.argmin()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
@cases(3, 13, 29, 40, 70)
def test_sanitized(size: int, order: str, dtype: torch.dtype) -> None:
    names = ("covariance", "rank one", "indefinite")
    a = torch.stack([matrices(size)[name] for name in names]).to(dtype)
    a[1, 0, 0] = float("nan")
    start = torch.linalg.eigh(a[0] + 0.01 * torch.eye(size, dtype=dtype))[1].expand_as(a)
    values, vectors, _ = solve(a, start=start, order=order, sanitize=True)
    assert_solved(a[::2], values[::2], vectors[::2])
    assert values[1].isnan().all()
    assert vectors[1].isnan().all()


@pytest.mark.slow
@cases(1, 5, 16, 30, 64, full=(90,))
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_matrix_that_is_not_finite_gives_nan_for_itself_alone(
    size: int, poison: float, dtype: torch.dtype
) -> None:
    a = stack(size, dtype)[:4]
    clean = solve(a)
    a[1, size - 1, 0] = poison
    a[2, size // 2, size // 2] = poison
    values, vectors, sweeps = solve(a)
    for bad in (1, 2):
        assert values[bad].isnan().all()
        assert vectors[bad].isnan().all()
        assert sweeps[bad] == 0
    for good in (0, 3):
        assert torch.equal(values[good], clean[0][good])
        assert torch.equal(vectors[good], clean[1][good])


@pytest.mark.parametrize("size", [6, 16, 33, 80])
def test_the_upper_triangle_is_not_read(size: int) -> None:
    a = stack(size, torch.float32)[:3]
    poisoned = a + torch.full((size, size), float("nan")).triu(1)
    for before, after in zip(solve(a), solve(poisoned), strict=True):
        assert torch.equal(before, after)


@pytest.mark.slow
@cases(4, 16, 33, 80)
def test_scale_does_not_matter(size: int, dtype: torch.dtype) -> None:
    """A power of two goes through to the last bit, as far as numbers of that size exist."""
    a = stack(size, dtype)[:3]
    values, vectors, sweeps = solve(a)
    large = 90 if dtype == torch.float32 else 900
    for exponent in (-large, -40, 40, large):
        factor = torch.tensor(2.0, dtype=torch.float64) ** exponent
        scaled = (a.double() * factor).to(dtype)
        assert torch.equal(scaled.double(), a.double() * factor)
        v, u, s = solve(scaled)
        assert torch.equal(u, vectors)
        assert torch.equal(s, sweeps)
        assert torch.equal(v, (values.double() * factor).to(dtype))


@pytest.mark.slow
@cases(5, 20, 66)
def test_subnormal_and_huge_entries(size: int, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    a = stack(size, torch.float64)[:2]
    a = a / a.abs().amax((1, 2), keepdim=True)
    tiny = (a * limits.smallest_normal / 8).to(dtype)
    values, vectors, _ = solve(tiny)
    assert_solved(
        tiny.double() / limits.smallest_normal,
        values.double() / limits.smallest_normal,
        vectors.double(),
        k=1e11,
    )  # what is left of a subnormal number's digits
    assert errors(tiny, values, vectors)[:, 2].max() < 100 * size * limits.eps
    huge = (a * limits.max / (4 * size)).to(dtype)  # eigenvalues exist
    values, vectors, _ = solve(huge)
    assert_solved(
        huge.double() / limits.max,
        values.double() / limits.max,
        vectors.double(),
        k=20 * limits.eps / torch.finfo(torch.float64).eps,
    )


def blended(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariances of two steps of training that blends 10 % of a batch into the running one."""
    rows = torch.randn(20 * size, size, dtype=torch.float64, generator=generator(seed))
    rotation = torch.linalg.qr(rows[:size])[0]
    rows = rows * torch.logspace(0, -1, size, dtype=torch.float64) @ rotation
    running, batch = rows[: 16 * size], rows[16 * size :]
    before = running.T @ running / len(running)
    return before, 0.9 * before + 0.1 * (batch.T @ batch) / len(batch)


@pytest.mark.slow
@cases(16, 30, 64, full=(100,))
def test_a_start_near_the_solution_takes_fewer_sweeps(size: int, dtype: torch.dtype) -> None:
    pairs = [blended(size, seed) for seed in range(2)]
    before = torch.stack([p[0] for p in pairs]).to(dtype)
    after = torch.stack([p[1] for p in pairs]).to(dtype)
    start = solve(before)[1]
    cold, warm = solve(after), solve(after, start=start)
    assert_solved(after, *warm[:2])
    assert (warm[2] <= cold[2] - 2).all(), (cold[2].tolist(), warm[2].tolist())
    exact = solve(after, start=cold[1])
    assert (exact[2] <= 2).all(), exact[2].tolist()  # roundings, and the sweep that finds nothing


@pytest.mark.parametrize("size", [12, 24, 70])
def test_a_start_that_is_not_finite_is_none(size: int) -> None:
    a = stack(size, torch.float32)[:3]
    start = torch.eye(size).repeat(3, 1, 1)
    start[1, 0, size - 1] = float("nan")
    for before, after in zip(solve(a), solve(a, start=start * float("inf")), strict=True):
        assert torch.equal(before, after)
    values, vectors, _ = solve(a, start=start)
    assert_solved(a, values, vectors)


@pytest.mark.slow
@cases(12, 24, 70)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda q: q * 1.001,
        lambda q: q.half().to(q.dtype),
        lambda q: 0 * q,
        lambda q: q[:, :1] + 0 * q,
    ],
    ids=["stretched", "rounded", "zero", "one row"],
)
def test_a_start_that_is_not_orthogonal_is_none(spoil, size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)[:2]
    cold = solve(a)
    for before, after in zip(cold, solve(a, start=spoil(cold[1])), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("size", [7, 16])
def test_a_warp_takes_several_matrices(size: int) -> None:
    a = stack(size, torch.float32)
    for before, after in zip(solve(a), solve(a, most_blocks=1), strict=True):
        assert torch.equal(before, after)


@pytest.mark.slow
@cases(24, 48, full=(66, 104))
def test_indefinite_matrices(size: int, dtype: torch.dtype) -> None:
    """Factorised after a shift, and once more in the basis of a start."""
    names = ("indefinite", "opposite pairs", "negative")
    a = torch.stack([matrices(size)[name] for name in names]).to(dtype)
    a = (a + a.mT) / 2
    noise = torch.randn(size, size, dtype=dtype, generator=generator(3))
    start = torch.linalg.eigh(a + 1e-3 * (noise + noise.T))[1]
    cold, warm = solve(a), solve(a, start=start)
    assert_solved(a, *cold[:2])
    assert_solved(a, *warm[:2])
    assert (warm[2] < cold[2]).all(), (cold[2].tolist(), warm[2].tolist())


@cases(32, 64, 128)
def test_what_does_not_fit_is_left_to_the_library(size: int, dtype: torch.dtype) -> None:
    """The matrix beside its eigenvectors up to order 64, one of them above; and little more."""
    arrays = (1 if size > 64 else 2) * size * (size + 4) * dtype.itemsize
    a = stack(size, dtype)[:1]
    assert_solved(a, *solve(a, shared_limit=arrays + (4 << 10))[:2])
    with pytest.raises(EmulationError, match="left to the library"):
        solve(a, shared_limit=arrays)


@pytest.mark.parametrize("dtype", LIMIT)
def test_what_is_too_large_is_left_to_the_library(dtype: torch.dtype) -> None:
    with pytest.raises(EmulationError, match="left to the library"):
        solve(torch.eye(LIMIT[dtype] + 1, dtype=dtype).unsqueeze(0))


@pytest.mark.parametrize("size", [16, 64, 128])
def test_whitening_matrices_are_as_good_as_lapacks(size: int) -> None:
    names = ("covariance", "rank-deficient", "tied", "condition 1e2", "condition 1e4")
    truth = torch.stack([matrices(size)[name] for name in names])
    a = truth.float()
    shift = 1e-3

    def whitening(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors * (values.clamp(min=0) + shift).rsqrt().unsqueeze(-2)) @ vectors.mT

    exact = whitening(*torch.linalg.eigh(a.double()))
    ours = (whitening(*solve(a)[:2]).double() - exact).flatten(1).norm(dim=1)
    lapack = (whitening(*torch.linalg.eigh(a)).double() - exact).flatten(1).norm(dim=1)
    size_of = exact.flatten(1).norm(dim=1)
    assert (ours <= 2 * lapack + 8 * torch.finfo(torch.float32).eps * size_of).all()
