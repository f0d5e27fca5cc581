"""Reductions whose chunks are several tiles of rows long, as with many rows, on few of them.

By default a chunk is one tile up to 128 tiles of rows, so that no test of moderate size goes
through the loop over the tiles of a chunk more than once.
"""

import pytest
import torch

from fastwhiten.backends import reference, triton
from fastwhiten.kernels import common
from tests.backends.test_stages import WHY, K, grouped, moments, weights
from tests.backends.test_stages_apply import reduce_plainly
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64

pytestmark = pytest.mark.interpret

CHUNKS = 3
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
# name: (rows, channels, groups, length of a plane or 0); tiles of 16 to 64 rows, the last not full
SHAPES = {
    "rows": (500, 8, 1, 0),
    "groups": (470, 12, 3, 0),
    "two blocks": (150, 70, 1, 0),  # more than 64 channels
    "planes": (5 * 97, 12, 2, 97),
}


@pytest.fixture(autouse=True)
def _few_chunks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Cut rows into at most three chunks, and return what is cut into how many tiles and chunks."""
    plans: list[tuple[int, int]] = []
    whole = common.plan_chunks

    def plan_chunks(rows: int, block_rows: int, programs: int) -> tuple[int, int]:
        plans.append(whole(rows, block_rows, programs))
        return plans[-1]

    monkeypatch.setattr(common, "CHUNKS", CHUNKS)
    for stage in ("statistics", "backward", "intensity"):
        monkeypatch.setattr(f"fastwhiten.kernels.{stage}.plan_chunks", plan_chunks)
    return plans


def rows_of(name: str, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    rows, channels, _, length = SHAPES[name]
    x = spectra.random(rows, channels, seed) * torch.linspace(0.5, 2.0, channels) + 3.0
    x = x.to(dtype)
    return x.reshape(-1, length, channels).mT.contiguous() if length else x


def accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", SHAPES)
def test_statistics(name, dtype, weighted, _few_chunks) -> None:
    rows, _, groups, _ = SHAPES[name]
    x, t = rows_of(name, dtype), accumulated(dtype)
    p = weights(rows, weighted, t)
    ours = triton.statistics(x, p, groups, False)
    truth = moments(x.double(), None if p is None else p.double(), groups)
    yardstick = moments(
        x.to(t).flip(0) if x.dim() == 2 else x.to(t).flip(0, 2),
        None if p is None else p.flip(0),
        groups,
    )
    for value, ref, same in zip(ours, truth, yardstick, strict=True):
        assert_close_to_fp64(value, ref, same, K, WHY)
    ((steps, chunks),) = _few_chunks
    assert steps >= 2 and 2 <= chunks <= CHUNKS


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", SHAPES)
def test_backward_reduce(name, dtype, _few_chunks) -> None:
    rows, channels, groups, _ = SHAPES[name]
    x, grad, t = rows_of(name, dtype), rows_of(name, dtype, seed=7), accumulated(dtype)
    mean = torch.linspace(2.5, 3.5, channels, dtype=t)
    ours = triton.backward_reduce(x, grad, mean, groups)
    truth = reduce_plainly(x.double(), grad.double(), mean.double(), groups)
    yardstick = reduce_plainly(x.to(t), grad.to(t), mean, groups)
    for value, ref, same in zip(ours, truth, yardstick, strict=True):
        assert_close_to_fp64(value, ref, same, K, WHY, rows**0.5)
    ((steps, chunks),) = _few_chunks
    assert steps >= 2 and 2 <= chunks <= CHUNKS


@pytest.mark.parametrize("method", [reference.OAS, reference.LEDOIT_WOLF], ids=["oas", "lw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", SHAPES)
def test_intensity(name, dtype, method, _few_chunks) -> None:
    rows, _, groups, _ = SHAPES[name]
    x, t = rows_of(name, dtype), accumulated(dtype)
    mean, covariance = reference.statistics(x, None, groups, False)
    ours = triton.intensity(x, mean, covariance, None, None, 1.0, method, 0.0)
    p = torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    names = {reference.OAS: "oas", reference.LEDOIT_WOLF: "ledoit-wolf"}
    for g, part in enumerate(grouped(x.double(), groups)):
        centered = part - p @ part
        batch = (centered * p[:, None]).T @ centered
        truth = plain.intensity(names[method], batch, batch, centered, p)
        # Sums of positive terms, then differences that cost a digit or two.
        assert float(ours[g]) == pytest.approx(truth, rel=2e3 * torch.finfo(t).eps)
    if method == reference.LEDOIT_WOLF:  # OAS reads no rows
        ((steps, chunks),) = _few_chunks
        assert steps >= 2 and 2 <= chunks <= CHUNKS
