"""The CUDA eigensolvers, emulated, against LAPACK in float64."""

import pytest
import torch

from tests.csrc.eigensystems import assert_solved, errors, matrices, solve, stack
from tests.csrc.emulation import EmulationError
from tests.helpers.spectra import generator

pytestmark = pytest.mark.emulated

WARP = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16]
# Of each path one size that fills its blocks and one that does not; the others in make test-all.
TWO_SIDED = [17, 33, 48, 64, *(pytest.param(n, marks=pytest.mark.full) for n in (31, 32, 47, 63))]
ONE_SIDED = [65, *(pytest.param(n, marks=pytest.mark.full) for n in (81, 96, 127, 128))]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("size", WARP + TWO_SIDED + ONE_SIDED)
def test_every_spectrum(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    forward = solve(a)
    assert_solved(a, *forward[:2])
    few = slice(0, 3 if size > 64 else None)  # the large ones take seconds each
    for before, after in zip(forward, solve(a[few], order="reversed"), strict=True):
        assert torch.equal(before[few], after), "the order of threads shows"


@pytest.mark.smoke
def test_the_first_of_two_largest_components_is_positive() -> None:
    """They are equal in size, bit for bit, and opposite in sign."""
    a = torch.tensor([[[-4.0, -2.0, 2.0], [-2.0, 2.0, 2.0], [2.0, 2.0, -4.0]]])
    values, vectors, _ = solve(a)
    assert vectors[0, 0, 0] == -vectors[0, 2, 0]
    assert_solved(a, values, vectors)


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
@pytest.mark.parametrize("size", [3, 13, 29, 40, 70])
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
@DTYPES
@pytest.mark.parametrize("size", [1, 5, 16, 30, 64, pytest.param(90, marks=pytest.mark.full)])
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
@DTYPES
@pytest.mark.parametrize("size", [4, 16, 33, 80])
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
@DTYPES
@pytest.mark.parametrize("size", [5, 20, 66])
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
@DTYPES
@pytest.mark.parametrize("size", [16, 32, 64, pytest.param(128, marks=pytest.mark.full)])
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
@DTYPES
@pytest.mark.parametrize("size", [12, 24, 70])
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


@pytest.mark.parametrize("size", [7, 20, 70])
def test_fewer_blocks_than_matrices(size: int) -> None:
    a = stack(size, torch.float32)[:4]
    for before, after in zip(solve(a), solve(a, most_blocks=1), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.full)])
def test_without_room_for_two_arrays(step: int) -> None:
    """What a device with 99 KiB of shared memory does."""
    a = stack(128, torch.float32)[::step]
    assert_solved(a, *solve(a, shared_limit=99 << 10)[:2], k=40.0)
    with pytest.raises(EmulationError, match="left to the library"):
        solve(a.double(), shared_limit=99 << 10)


@pytest.mark.parametrize("size", [66, 71, pytest.param(104, marks=pytest.mark.full)])
def test_indefinite_doubles_without_room_for_two_arrays(size: int) -> None:
    """As accurate as with room; a shift by Gershgorin's bound had 13 times LAPACK's residual."""
    a = torch.stack([matrices(size)[name] for name in ("indefinite", "opposite pairs", "negative")])
    a = (a + a.mT) / 2
    limit = {66: 48, 71: 54, 104: 98}[size] << 10  # one array fits, two do not
    start = torch.linalg.eigh(a + 0.01 * torch.eye(size, dtype=a.dtype))[1]
    cold, warm = solve(a, shared_limit=limit), solve(a, start=start, shared_limit=limit)
    assert_solved(a, *cold[:2])
    assert_solved(a, *warm[:2])
    assert (warm[2] < cold[2]).all(), (cold[2].tolist(), warm[2].tolist())
    for value, with_room in zip(cold, solve(a), strict=True):
        assert torch.equal(value, with_room), "the same rotations, in another memory"


def test_what_is_too_large_is_left_to_the_library() -> None:
    with pytest.raises(EmulationError, match="left to the library"):
        solve(torch.eye(129).unsqueeze(0))


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
