"""Fixtures shared by the library's tests."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

from tests.helpers import tiers

# Triton decides when a kernel is defined whether it will be compiled or interpreted, so this must
# be set before any is imported. Tests that need the compiled ones start a process of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the tiers, and the option that leaves Triton's interpreter as it is."""
    parser.addoption(
        "--tier",
        choices=tuple(tiers.STRENGTH),
        default="test",
        help="which cases run: see tests/helpers/tiers.py; a test that is named runs whole",
    )
    parser.addoption(
        "--plain-interpreter",
        action="store_true",
        help="interpret Triton kernels without tests/helpers/interpreter.py: three times slower",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let a worker of pytest-xdist that dies end the run: replaced, it would run the test again."""
    torch.set_num_threads(1)  # what tests compute while they are collected
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin the products of parameters, unless tests are named by ``file.py::test``."""
    if any("::" in argument for argument in config.args):
        return
    items[:], left_out = tiers.thin(items, config.getoption("--tier"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interpret kernels fast: all cases of all tests run, the whole of every axis."""
    interpreted = (
        request.node.get_closest_marker("interpret") and os.environ["TRITON_INTERPRET"] == "1"
    )
    if not interpreted:
        yield
        return
    from tests.helpers import interpreter  # imports triton, which most tests do not need

    plain = request.config.getoption("--plain-interpreter", default=False)
    with contextlib.nullcontext() if plain else interpreter.fast():
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
