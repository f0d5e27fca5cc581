"""``whiten`` over processes is ``whiten`` in one process that holds all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastwhiten
from tests.distributed import cases
from tests.distributed.processes import Processes
from tests.helpers import plain, spectra

pytestmark = pytest.mark.xdist_group("distributed")

# name: (shape, samples on each rank, options)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "two processes": ((20, 6), (10, 10), {}),
    "three processes, unequal": ((31, 6), (7, 20, 4), {}),
    "pca": ((31, 6), (7, 20, 4), {"kind": "pca"}),
    "cholesky": ((31, 6), (7, 20, 4), {"kind": "cholesky"}),
    "groups": ((31, 12), (7, 20, 4), {"groups": 3}),
    "one channel": ((9, 1), (4, 3, 2), {}),
    "fewer rows than channels here": ((30, 8), (5, 21, 4), {}),
    "fewer rows than channels everywhere": ((9, 12), (3, 4, 2), {}),
    "one row here": ((12, 4), (1, 11), {}),
    "one row on each": ((3, 4), (1, 1, 1), {}),
    "no row here": ((20, 5), (12, 0, 8), {}),
    "all rows on one process": ((20, 5), (0, 0, 20), {"kind": "cholesky"}),
    "wide": ((40, 300), (30, 10), {"eps": 0.1}),  # in one process: the eigenbasis
    "planes": ((6, 4, 3, 5), (2, 3, 1), {"groups": 2}),
    "planes, none here": ((5, 4, 3, 5), (4, 0, 1), {}),
    "sequence": ((6, 4, 7), (4, 2), {"kind": "pca"}),
    "oas": ((24, 6), (7, 13, 4), {"shrinkage": "oas", "groups": 2}),
    "ledoit-wolf": ((24, 6), (7, 13, 4), {"shrinkage": "ledoit-wolf", "groups": 2}),
    "ledoit-wolf, no row here": ((24, 6), (24, 0), {"shrinkage": "ledoit-wolf"}),
    "fixed shrinkage": ((24, 6), (7, 13, 4), {"shrinkage": 0.3, "kind": "cholesky"}),
}


def shifted(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """A batch whose parts have means of their own: what merging has to get right."""
    rows = torch.Size(shape).numel() // shape[1]
    x = plain.from_rows(spectra.random(rows, shape[1]), torch.empty(shape)).contiguous()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return x + owner.double().reshape(-1, *[1] * (len(shape) - 1))


def gather(results: list[Any], key: str) -> Tensor:
    return torch.cat([r[key] for r in results if r is not None])


def check(
    processes: Processes,
    x: Tensor,
    sizes: tuple[int, ...],
    options: dict[str, Any],
    weight: Tensor | None = None,
    atol: float = 1e-11,
) -> list[Any]:
    """Compare with one process, in float64: only a few roundings apart, at eps = 1e-3."""
    grad = torch.randn(x.shape, dtype=x.dtype)
    results = processes.run(cases.whiten, x, grad, sizes, weight, options)
    y, dx = plain.value_and_grad(fastwhiten.whiten, x, grad, sample_weight=weight, **options)
    torch.testing.assert_close(gather(results, "y"), y, rtol=0.0, atol=atol)
    torch.testing.assert_close(gather(results, "dx"), dx, rtol=0.0, atol=atol)
    return results


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(name: str, weighted: bool, backend: str, processes: Processes) -> None:
    shape, sizes, options = CASES[name]
    options = {**options, "backend": backend}
    weight = torch.rand(shape[0], dtype=torch.float64) + 0.1 if weighted else None
    results = check(
        processes, shifted(shape, sizes), sizes, {**options, "backend": backend}, weight
    )
    # The contract: one collective each way. Ledoit-Wolf's fourth moments take one more.
    forward = 2 if options.get("shrinkage") == "ledoit-wolf" else 1
    for result in results[: len(sizes)]:
        assert (result["forward"], result["backward"]) == (forward, 1)
