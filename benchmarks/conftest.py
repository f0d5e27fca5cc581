"""Machine facts beside the figures, and the table after them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.device import DRY_RUN

from . import machine, report

HERE = Path(__file__).parent
TABLE = "bench_whiten.py"
_ceilings: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the device axis, and the rest beside the scenes of the table."""
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="where the benchmarks run; cuda needs a GPU",
    )
    parser.addoption(
        "--all",
        action="store_true",
        help="not the table's scenes alone: forward alone, peak memory, and every other file; "
        "a file that is named runs whole",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there; with a GPU, kernels are compiled, not interpreted."""
    held = os.environ.get("ATEN_CPU_CAPABILITY")
    if held is not None:  # Inductor takes from its cache what was compiled for other instructions
        cache = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}_{held}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    if config.getoption("--device", default="cpu") == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: torch.cuda.is_available() is False here")
        if os.environ.get("TRITON_INTERPRET", "0") == "1":
            raise pytest.UsageError(
                "--device cuda: TRITON_INTERPRET=1 is set, which interprets Triton kernels on CPU "
                "tensors; unset it"
            )
        torch.backends.cuda.matmul.allow_tf32 = False  # convolutions stay as PyTorch has them
    if DRY_RUN:
        torch.set_num_threads(1)  # threads that wait for each other would show nothing


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what runs on the device, and of that the table's scenes unless more is asked for."""
    cuda = config.getoption("--device") == "cuda"
    named = {Path(argument.partition("::")[0]).name for argument in config.args}

    def kept(item: Any) -> bool:
        if HERE not in item.path.parents:
            return True
        elsewhere = (
            "device" not in item.fixturenames if cuda else item.get_closest_marker("cuda_only")
        )
        if elsewhere and (cuda or not DRY_RUN):
            return False
        table = item.path.name == TABLE and "-both]" in item.name
        return table or item.path.name in named or config.getoption("--all")

    config.hook.pytest_deselected(items=[item for item in items if not kept(item)])
    items[:] = filter(kept, items)
    session = getattr(config, "_benchmarksession", None)
    if session is not None and all(item.path.name == TABLE for item in items):
        session.quiet = True  # its entries are whole scenes: the times of nobody


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the benchmarks run: "cpu" or "cuda"."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def everything(request: pytest.FixtureRequest) -> bool:
    """Whether --all was given."""
    return bool(request.config.getoption("--all"))


@pytest.fixture
def bounds(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The ceilings: the fastest that was seen before any scene, before those held against them."""
    device = request.config.getoption("--device")
    if not _ceilings:
        _ceilings.update(machine.ceilings(device))
    for what, speed in machine.speeds(device).items():
        _ceilings[what] = max(_ceilings[what], speed)
    return _ceilings


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Record versions, threads and ceilings with the results; leave the host's name out."""
    machine_info.pop("node", None)
    machine_info.update(machine.facts(config.getoption("--device")))
    if _ceilings:
        machine_info["ceilings"] = _ceilings


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the speed table, the targets that were missed and what has become slower."""
    from .bench_targets import lines  # here: pytest rewrites its assertions when it collects it

    if lines():
        terminalreporter.section("targets of an H100")
        terminalreporter.write_line("\n".join(lines()))
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    entries = [
        bench.as_dict(include_data=False) for bench in session.benchmarks if not bench.has_error
    ]
    few_rows = report.few_rows_table(entries)
    if few_rows:
        terminalreporter.section("fewer rows than channels: standard deviation of the output")
        terminalreporter.write_line(few_rows)
    on_device = report.device_table(entries)
    if on_device:
        terminalreporter.section("microseconds by the device's clock, caches cold")
        terminalreporter.write_line(on_device)
    if not _ceilings:
        return
    facts = machine.facts(config.getoption("--device")) | {"ceilings": _ceilings}
    run = report.summarize({"machine_info": facts, "benchmarks": entries})
    if run["both"]:
        terminalreporter.section("forward + backward: times faster than eager eigh + autograd")
        terminalreporter.write_line(report.text(run))
