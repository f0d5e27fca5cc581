"""The stages by the compiled kernels, which tests/csrc/machine runs instruction by instruction.

They compute what a device computes, and the machine says how long one would take. Needs nvcc and
nvdisasm. Kernels are compiled when they are launched for the first time.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compiled_kernels
import torch
from torch import Tensor

from tests.csrc import emulated_stages, emulation

# Why warps wait before an instruction, as in machine/multiprocessor.h.
REASONS = ("stall", "short", "long", "pipe", "barrier", "branch", "other")
LIBRARY = "the library's eigensolver"


@dataclass(frozen=True)
class Report:
    """What came of a launch.

    Attributes:
        kernel: mangled name.
        numbers: by the names of machine/report.h; only sizes if nothing ran.
        rounds: ``(place, releases, median cycles from one to the next)`` of the first block's
            barriers.
        lines: of the source: warp instructions, then cycles that warps waited, by REASONS.
    """

    kernel: str
    numbers: dict[str, float] = field(default_factory=dict)
    rounds: list[tuple[str, int, int]] = field(default_factory=list)
    lines: dict[str, list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0] * (1 + len(REASONS)))
    )


def run(
    driver: str,
    *,
    launches: list[Report] | None = None,
    only_sizes: bool = False,
    alone: bool = False,
    **arguments: Any,
) -> dict[str, Tensor]:
    """Run a driver as :func:`emulation.run` does.

    Args:
        driver: name of a file in ``tests/csrc/drivers``.
        launches: takes what comes of each launch.
        only_sizes: nothing runs, and results are garbage; needs no nvcc.
        alone: only the blocks of one multiprocessor run; the others' results are garbage.
        **arguments: as there.

    Raises:
        EmulationError: a kernel went wrong.
        SystemExit: there is no nvcc, or a kernel does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {"FASTWHITEN_MACHINE": folder}
        if alone:
            environment["FASTWHITEN_MACHINE_ALONE"] = "1"
        settings = {**arguments, "sanitize": "machine", "environment": environment}
        report = Path(folder, "report")
        found = emulation.run(driver, **settings)
        reports = parse(report.read_text()) if report.exists() else []
        if reports and not only_sizes:
            names = sorted({launch.kernel for launch in reports})
            Path(folder, "program").write_text(compiled_kernels.programs(names))
            report.unlink()
            found = emulation.run(driver, **settings)
            reports = parse(report.read_text())
    if launches is not None:
        launches.extend(reports)
    return found


def parse(text: str) -> list[Report]:
    """Return the launches of a report."""
    launches: list[Report] = []
    for line in text.splitlines():
        key, *values = line.split()
        if key == "kernel":
            launches.append(Report(values[0]))
        elif key == "rounds":
            launches[-1].rounds.append((values[0], int(values[2]), int(values[3])))
        elif key == "place":
            counts = launches[-1].lines[values[1]]
            for i, value in enumerate((values[3], *values[5:])):
                counts[i] += int(value)
        else:
            launches[-1].numbers[key] = float(values[0])
    return launches


@dataclass(frozen=True, eq=False)
class CompiledStages(emulated_stages.EmulatedStages):
    """A backend of compiled kernels; arguments as :func:`run`'s."""

    launches: list[Report] = field(default_factory=list)
    only_sizes: bool = False
    alone: bool = False

    def _driver(self, driver: str, **arguments: Any) -> dict[str, Tensor]:
        options = {"only_sizes": self.only_sizes, "alone": self.alone}
        return run(driver, launches=self.launches, **options, **arguments)

    def eigh(self, a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decompose; beyond our own eigensolver's limit by the library's, whose time is unknown."""
        size = a.shape[-1]
        if size <= 128:
            return super().eigh(a, start)
        sizes = {"batch": a.numel() // size**2, "width": size}
        guarded = self._driver("library", kernel=0, a=a, **sizes)
        self.launches.append(Report(LIBRARY))
        of = torch.eye(size).expand(a.shape) if self.only_sizes else guarded["guarded"]
        values, vectors = torch.linalg.eigh(of.reshape(a.shape))
        out = self._driver(
            "library",
            kernel=1,
            a=vectors.mT.contiguous(),
            values=values,
            finite=guarded["finite"],
            **sizes,
        )
        return out["out_values"].reshape(values.shape), out["vectors"].reshape(a.shape)
