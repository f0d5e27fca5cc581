"""Machine facts beside the figures, and the table after them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import fastwhiten

from . import memory, report
from .scenes import SCENES

_ceilings: dict[str, Any] = {}


def ceilings() -> dict[str, Any]:
    """Measure, once per run, what bounds all: copy bandwidth, products, eigensolvers.

    Each is the fastest that this machine was seen to do by any means at hand: the best of several
    sizes of sgemm, and the better of the library's eigensolver and ours.
    """
    if _ceilings:
        return _ceilings
    block = torch.randn(1 << 22)  # 16 MiB
    target = torch.empty_like(block)
    squares = [torch.randn(n, n) for n in (256, 512, 1024)]
    _ceilings["bytes_per_second"] = 2 * 4 * block.numel() / _best(lambda: target.copy_(block))
    _ceilings["flops_per_second"] = max(
        2 * len(a) ** 3 / _best(lambda a=a: a @ a)  # type: ignore[misc]
        for a in squares
    )
    _ceilings["eigh"] = {}
    for scene in SCENES:
        key = f"{scene.groups}x{scene.eigen_size}"
        rows = scene.input().movedim(1, -1).reshape(-1, scene.groups, scene.size).transpose(0, 1)
        rows = rows.mT if scene.sample_side else rows
        matrix = rows.mT @ rows
        if key not in _ceilings["eigh"]:
            one = _best(lambda m=matrix: torch.linalg.eigh(m))  # type: ignore[misc]
            # The library decomposes groups one after another; they could run side by side.
            library = one / min(scene.groups, torch.get_num_threads())
            ours = _best(lambda m=matrix: fastwhiten.symmetric_eigh(m))  # type: ignore[misc]
            _ceilings["eigh"][key] = min(library, ours)
    return _ceilings


def _best(function: Any) -> float:
    return min(memory.seconds(function) for _ in range(10))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Record versions, threads and ceilings with the results; leave the host's name out."""
    machine_info.pop("node", None)
    machine_info["fastwhiten"] = fastwhiten.__version__
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
    machine_info["ceilings"] = ceilings()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the speed table and the targets that were missed."""
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    entries = [
        bench.as_dict(include_data=False) for bench in session.benchmarks if not bench.has_error
    ]
    results = report.collect(entries)
    table = report.speed_table(results, ceilings())
    if table.count("\n") < 2:
        return
    terminalreporter.section("forward + backward: times faster than eager eigh + autograd, float32")
    terminalreporter.write_line(table)
    missed = report.misses(results)
    terminalreporter.write_line("\n".join(missed) if missed else "every target reached")
