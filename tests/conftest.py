"""Fixtures shared by the library's tests."""

import os
from collections.abc import Iterator

import pytest
import torch

# Triton decides when a kernel is defined whether it will be compiled or interpreted, so this must
# be set before any is imported. Tests that need the compiled ones start a process of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")


# The interpreter takes about a tenth of a millisecond an operation. Of a test with many cases it
# runs every thirteenth: no axis has a length that 13 divides, so every value of every axis is met.
MANY, STRIDE = 20, 13


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs every case."""
    parser.addoption(
        "--every-interpreted-case",
        action="store_true",
        help=f"also run the cases that are left out of interpreted tests of more than {MANY} cases",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out the interpreted cases."""
    compiled = os.environ["TRITON_INTERPRET"] != "1"  # tests/gpu on a GPU: they are fast
    if compiled or config.getoption("--every-interpreted-case", default=False):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("interpret"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for same in cases.values():
        if len(same) > MANY:
            left_out.update(item for i, item in enumerate(same) if i % STRIDE)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


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


@pytest.fixture(params=["reference", "native", pytest.param("triton", marks=pytest.mark.interpret)])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the backend under test. A backend that is not built fails: it is never skipped."""
    return str(request.param)
