"""Fixtures shared by the library's tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Run in one thread: the matrices are tiny, and waiting threads cost minutes on a busy machine.

    ``test_determinism`` holds that two and three threads give the same bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the backend under test. A backend that is not built fails: it is never skipped."""
    return str(request.param)
