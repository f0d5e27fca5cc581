"""cuSOLVER's batched eigensolver as csrc/cuda/cusolver.h finds and calls it.

The cuSOLVER is one of ours, ``drivers/fake_cusolver.h``, which holds callers to the manual.
"""

from __future__ import annotations

import pytest
import torch

from fastwhiten.backends import reference
from tests.csrc.emulation import EmulationError, run
from tests.helpers import spectra

pytestmark = pytest.mark.emulated

EVERY = pytest.mark.parametrize(
    ("order", "sanitize"), [("forward", False), ("reversed", True)], ids=["plain", "sanitized"]
)
SIZE, BATCH = 37, 4
NEVER_SOLVED = 1e6


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
def test_eigensystems_of_lower_triangles(dtype: torch.dtype, order: str, sanitize: bool) -> None:
    """One call for all; NaN alone where a matrix is not finite or the library does not solve it."""
    a = reference.statistics(spectra.random(200, SIZE * BATCH), None, BATCH, False)[1].to(dtype)
    a[1, SIZE - 1, 0] = float("nan")
    a[2, 0, 0] = NEVER_SOLVED
    given = a + torch.full_like(a, float("inf")).triu(1)
    out = run("cusolver", a=given, batch=BATCH, width=SIZE, times=3, order=order, sanitize=sanitize)
    assert out["batches"].tolist() == [BATCH] * 3
    assert out["handles"].tolist() == [1]  # by two streams in turn
    values, vectors = out["values"].reshape(BATCH, SIZE), out["vectors"].reshape(a.shape)
    for b in (1, 2):
        assert values[b].isnan().all() and vectors[b].isnan().all()
    for b in (0, 3):
        expected = reference.eigh(a[b : b + 1].double())
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        for ours, truth in zip((values[b], vectors[b]), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
def test_threads_share_no_handle(sanitize: bool) -> None:
    a = reference.statistics(spectra.random(50, 8 * 12), None, 12, False)[1]
    out = run("cusolver", a=a, batch=12, width=8, threads=3, sanitize=sanitize)
    torch.testing.assert_close(out["values"].reshape(12, 8), torch.linalg.eigvalsh(a))
    assert out["batches"].tolist() == [2] * 6
    assert out["handles"].tolist() == [3]  # three are in a call at a time, the second time too


def test_large_batches_are_split() -> None:
    a = torch.arange(32770, dtype=torch.float64)
    out = run("cusolver", a=a, batch=32770, width=1, threads=1)
    assert out["batches"].tolist() == [16384, 1] * 2
    assert torch.equal(out["values"], a) and not out["info"].any()


FAILURES = {
    "handle": (1, 2, r"cusolverDnCreate: .* 2 \(ALLOC_FAILED\); .* torch.cuda.empty_cache"),
    "params": (2, 1, r"cusolverDnCreateParams: expected success, got status 1 \(NOT_INITIALIZED\)"),
    "workspace": (3, 3, r"_bufferSize of 1 matrices of order 513: .* 3 \(INVALID_VALUE\)"),
    "solve": (4, 7, r"Batched of 1 matrices of order 513: .* \(INTERNAL_ERROR\); in a CUDA graph"),
    "unknown": (4, 31, r"cusolverDnXsyevBatched of 1 .* expected success, got status 31; "),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_told_and_leave_nothing_behind(case: str) -> None:
    fails, status, message = FAILURES[case]
    with pytest.raises(EmulationError, match=f"1 handles: eigh: .*{message}"):
        run(
            "cusolver",
            a=torch.eye(513),
            batch=1,
            width=513,
            fails=fails,
            status=status,
            sanitize=True,
        )


def test_old_and_absent_libraries_are_told() -> None:
    options = {"a": torch.eye(2), "batch": 1, "width": 2}
    with pytest.raises(EmulationError, match=r"missing: cuSOLVER 11\.7\.1 is older than 11\.7\.3"):
        run("cusolver", version=11701, **options)
    for library in (1, 2):
        with pytest.raises(EmulationError, match="missing: no cusolverDnXsyevBatched was found"):
            run("cusolver", library=library, **options)
    out = run("cusolver", version=12401, **options)
    assert "".join(map(chr, out["version_text"])) == "cuSOLVER 12.4.1"
