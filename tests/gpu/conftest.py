"""Marks everything here as ``gpu``, and skips it where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastwhiten import backends
from tests.gpu.device import DEVICE, DRY_RUN, DeviceStages

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a GPU; in a dry run, only what needs CUDA itself."""
    absent = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if DRY_RUN:
            if item.get_closest_marker("cuda_only"):
                item.add_marker(pytest.mark.skip(reason="a dry run on the CPU"))
        elif not torch.cuda.is_available():
            item.add_marker(absent)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """The stages on the device under test, by a name of their own."""
    monkeypatch.setitem(backends.BACKENDS, "device", DeviceStages())
    return "device"


@pytest.fixture
def device() -> torch.device:
    return DEVICE
