"""Fixtures shared by the library's tests."""

import os
from collections.abc import Iterator

import pytest
import torch

# Triton decides when a kernel is defined whether it will be compiled or interpreted, so this must
# be set before any is imported. Tests that need the compiled ones start a process of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that leaves Triton's interpreter as it is."""
    parser.addoption(
        "--plain-interpreter",
        action="store_true",
        help="interpret Triton kernels without tests/helpers/interpreter.py: three times slower",
    )


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interpret kernels fast: all cases of all tests run, the whole of every axis."""
    interpreted = (
        request.node.get_closest_marker("interpret") and os.environ["TRITON_INTERPRET"] == "1"
    )
    if not interpreted or request.config.getoption("--plain-interpreter", default=False):
        yield
        return
    from tests.helpers import interpreter  # imports triton, which most tests do not need

    with interpreter.fast():
        yield


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
