"""Machine facts beside the figures, and the table after them."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fastwhiten
from fastwhiten import info
from tests.gpu.device import DRY_RUN

from . import memory, report
from .providers import unavailable
from .scenes import SCENES

HERE = Path(__file__).parent
_ceilings: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the device axis."""
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="where the benchmarks run; cuda needs a GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there; with a GPU, kernels are compiled, not interpreted."""
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
    """Keep what runs on the device; torch.compile, which takes long, comes last."""
    cuda = config.getoption("--device") == "cuda"

    def kept(item: Any) -> bool:
        elsewhere = (
            "device" not in item.fixturenames if cuda else item.get_closest_marker("cuda_only")
        )
        return HERE not in item.path.parents or not elsewhere or (DRY_RUN and not cuda)

    config.hook.pytest_deselected(items=[item for item in items if not kept(item)])
    items[:] = sorted(filter(kept, items), key=lambda item: cuda and "compiled" in item.name)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the benchmarks run: "cpu" or "cuda"."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def bounds(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The ceilings, measured before those who are held against them: a run may be stopped."""
    return ceilings(request.config.getoption("--device"))


def ceilings(device: str) -> dict[str, Any]:
    """Measure, once per run, what bounds all: copy bandwidth, products, eigensolvers.

    Each is the fastest that this machine was seen to do by any means at hand: the best of several
    sizes of sgemm, and the better of the library's eigensolver and ours.
    """
    if _ceilings:
        return _ceilings
    block = torch.randn(1 << (22 if device == "cpu" else 28), device=device)  # 16 MiB, 1 GiB
    target = torch.empty_like(block)
    squares = [torch.randn(n, n, device=device) for n in (256, 512, 1024)]
    _ceilings["bytes_per_second"] = (
        2 * 4 * block.numel() / _best(lambda: target.copy_(block), device)
    )
    _ceilings["flops_per_second"] = max(
        2 * len(a) ** 3 / _best(lambda a=a: a @ a, device)  # type: ignore[misc]
        for a in squares
    )
    _ceilings["eigh"] = {}
    for scene in SCENES:
        key = f"{scene.groups}x{scene.eigen_size}"
        rows = scene.input(device=device).movedim(1, -1)
        rows = rows.reshape(-1, scene.groups, scene.size).transpose(0, 1)
        rows = rows.mT if scene.sample_side else rows
        matrix = rows.mT @ rows
        if key not in _ceilings["eigh"]:
            one = _best(lambda m=matrix: torch.linalg.eigh(m), device)  # type: ignore[misc]
            # The library decomposes groups one after another; they could run side by side.
            library = one / (min(scene.groups, torch.get_num_threads()) if device == "cpu" else 1)
            ours = _best(lambda m=matrix: fastwhiten.symmetric_eigh(m), device)  # type: ignore[misc]
            _ceilings["eigh"][key] = min(library, ours)
    return _ceilings


def _best(function: Any, device: str) -> float:
    timed = memory.synchronised(function, device)
    return min(memory.seconds(timed) for _ in range(10))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Record versions, threads and ceilings with the results; leave the host's name out."""
    machine_info.pop("node", None)
    machine_info["fastwhiten"] = fastwhiten.__version__
    machine_info["torch"] = torch.__version__
    machine_info["kernels"] = info.build()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
    device = machine_info["device"] = config.getoption("--device")
    if device == "cuda":
        machine_info["gpu"] = torch.cuda.get_device_name()
        machine_info["cuda"] = torch.version.cuda
        machine_info["triton"] = importlib.metadata.version("triton")
    if _ceilings:
        machine_info["ceilings"] = _ceilings


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the speed table and the targets that were missed."""
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
    results = report.collect(entries)
    device = config.getoption("--device")
    table = report.speed_table(results, _ceilings)
    if table.count("\n") < 2:
        return
    terminalreporter.section("forward + backward: times faster than eager eigh + autograd, float32")
    terminalreporter.write_line(table)
    for provider in report.ORDER:
        reason = unavailable(provider, device)
        if reason is not None:
            terminalreporter.write_line(f"{provider} was not measured: {reason}")
    if device == "cpu":  # those for a GPU: benchmarks/bench_targets.py
        missed = report.misses(results)
        terminalreporter.write_line("\n".join(missed) if missed else "every target reached")
