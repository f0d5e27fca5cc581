"""Marks everything here as ``gpu``, and skips it where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastwhiten import backends
from fastwhiten.backends import triton
from tests.gpu.device import ABSENT, DRY_RUN, REASON, DeviceStages
from tests.gpu.launches import FOLDER, noted

HERE = Path(__file__).parent
# Their tests are those of tests/, which interpret the Triton kernels already.
TAKEN_OVER = ("test_stages.py", "test_public.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a GPU; in a dry run, only what needs CUDA itself or is run elsewhere."""
    absent = pytest.mark.skip(reason=REASON)
    # Triton kernels of this process are compiled or interpreted: torch.compile's too.
    interpreted = pytest.mark.skip(
        reason="TRITON_INTERPRET=1 is set; TRITON_INTERPRET=0 pytest tests/gpu runs the compiled "
        "kernels, and so does make gpu"
    )
    elsewhere = pytest.mark.skip(reason="a dry run: tests/ interprets these Triton kernels")
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        triton_kernels = item.get_closest_marker("interpret")
        if DRY_RUN:
            if item.get_closest_marker("cuda_only"):
                item.add_marker(pytest.mark.skip(reason="a dry run on the CPU"))
            elif triton_kernels and item.path.name in TAKEN_OVER and not FOLDER:
                item.add_marker(elsewhere)
        elif ABSENT:
            item.add_marker(absent)
        elif triton.interpreted() and (triton_kernels or "compiled" in item.name):
            item.add_marker(interpreted)


@pytest.fixture(scope="session", autouse=True)
def _launches() -> Iterator[None]:
    """Note what Triton would compile, where that is asked for."""
    if not FOLDER:
        yield
        return
    with noted():
        yield


@pytest.fixture(params=["native", pytest.param("triton", marks=pytest.mark.interpret)])
def kernels(request: pytest.FixtureRequest) -> str:
    """Whose kernels run on the device: CUDA C++ or Triton, which a dry run interprets."""
    return str(request.param)


@pytest.fixture
def backend(kernels: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend whose stages run on the device, also for the CPU tensors of other tests."""
    monkeypatch.setitem(backends.BACKENDS, kernels, DeviceStages(kernels))
    monkeypatch.setattr(backends, "_require_triton", lambda device, asked: None)
    return kernels
