"""Marks everything here as ``gpu``, and skips it where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastwhiten import backends
from fastwhiten.backends import triton
from tests.gpu.device import DEVICE, DRY_RUN, DeviceStages

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a GPU; in a dry run, only what needs CUDA itself."""
    absent = pytest.mark.skip(reason="needs a CUDA device")
    # Triton kernels of this process are compiled or interpreted: torch.compile's too.
    interpreted = pytest.mark.skip(
        reason="TRITON_INTERPRET=1 is set; TRITON_INTERPRET=0 pytest tests/gpu runs the compiled "
        "kernels, and so does tools/gpu_check.sh"
    )
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if DRY_RUN:
            if item.get_closest_marker("cuda_only"):
                item.add_marker(pytest.mark.skip(reason="a dry run on the CPU"))
        elif not torch.cuda.is_available():
            item.add_marker(absent)
        elif triton.interpreted() and (
            item.get_closest_marker("interpret") or "compiled" in item.name
        ):
            item.add_marker(interpreted)


@pytest.fixture(params=["native", pytest.param("triton", marks=pytest.mark.interpret)])
def kernels(request: pytest.FixtureRequest) -> str:
    """Whose kernels run on the device: CUDA C++ or Triton, which a dry run interprets."""
    return str(request.param)


@pytest.fixture
def backend(kernels: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stages on the device under test, by a name of their own."""
    monkeypatch.setitem(backends.BACKENDS, "device", DeviceStages(kernels))
    return "device"


@pytest.fixture
def device() -> torch.device:
    return DEVICE
