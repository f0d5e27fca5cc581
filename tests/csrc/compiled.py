"""The stages by the compiled kernels, which tests/csrc/machine runs instruction by instruction.

They compute what a device computes, and the machine says how long one would take. Needs nvcc and
nvdisasm. Kernels are compiled when they are launched for the first time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compiled_kernels
import torch
from torch import Tensor

from tests.csrc import emulated_stages, emulation


@dataclass(frozen=True)
class Report:
    """What came of a launch: numbers by name, and ``(place, releases, median gap)`` of barriers."""

    kernel: str
    numbers: dict[str, float]
    rounds: list[tuple[str, int, int]] = field(default_factory=list)


def run(driver: str, **arguments: Any) -> tuple[dict[str, Tensor], list[Report]]:
    """Run a driver as :func:`emulation.run` does; return its results, and what came of launches.

    Raises:
        EmulationError: a kernel went wrong.
        SystemExit: there is no nvcc, or a kernel does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {"sanitize": "machine", "environment": {"FASTWHITEN_MACHINE": folder}}
        report = Path(folder, "report")
        emulation.run(driver, **settings, **arguments)
        names = {line.split()[1] for line in report.read_text().splitlines()}
        Path(folder, "program").write_text(compiled_kernels.programs(sorted(names)))
        report.unlink()
        found = emulation.run(driver, **settings, **arguments)
        return found, parse(report.read_text())


def parse(text: str) -> list[Report]:
    """Return the launches of a report."""
    launches: list[Report] = []
    for line in text.splitlines():
        key, *values = line.split()
        if key == "kernel":
            launches.append(Report(values[0], {}))
        elif key == "rounds":
            launches[-1].rounds.append((values[0], int(values[2]), int(values[3])))
        elif key != "place":
            launches[-1].numbers[key] = float(values[0])
    return launches


@dataclass(frozen=True)
class CompiledStages(emulated_stages.EmulatedStages):
    """A backend of compiled kernels. ``launches`` takes what came of each."""

    launches: list[Report] = field(default_factory=list)

    def _driver(self, driver: str, **arguments: Any) -> dict[str, Tensor]:
        found, reports = run(driver, **arguments)
        self.launches.extend(reports)
        return found

    def eigh(self, a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decompose; beyond our own eigensolver's limit the library's, of which we know no time."""
        size = a.shape[-1]
        if size <= 128:
            return super().eigh(a, start)
        sizes = {"batch": a.numel() // size**2, "width": size}
        guarded = self._driver("library", kernel=0, a=a, **sizes)
        self.launches.append(Report("library", {}))
        values, vectors = torch.linalg.eigh(guarded["guarded"].reshape(a.shape))
        out = self._driver(
            "library",
            kernel=1,
            a=vectors.mT.contiguous(),
            values=values,
            finite=guarded["finite"],
            **sizes,
        )
        return out["out_values"].reshape(values.shape), out["vectors"].reshape(a.shape)
