"""The machine that is measured: what it is, and what bounds everybody on it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

import fastwhiten
from fastwhiten import info

from . import memory
from .scenes import SCENES


@functools.cache
def facts(device: str = "cpu") -> dict[str, Any]:
    """Return processor, instruction set, threads and versions; of a GPU also its name."""
    import cpuinfo  # comes with pytest-benchmark; takes a second

    cpu = cpuinfo.get_cpu_info()
    # Virtual machines call all generations of a processor by one name.
    numbers = "".join(f" {key} {cpu[key]}" for key in ("family", "model") if key in cpu)
    kernels = info.build()  # loads the ops
    found = {
        "processor": cpu.get("brand_raw", platform.machine()) + numbers,
        "isa": torch.ops.fastwhiten.cpu_capability() if kernels else "no kernels",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "fastwhiten": fastwhiten.__version__,
        "torch": torch.__version__,
        "python_version": platform.python_version(),
        "kernels": kernels,
        "device": device,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found["triton"] = importlib.metadata.version("triton")
    return found


def speeds(device: str) -> dict[str, float]:
    """Return the speed of a copy, and of the fastest sgemm of a few sizes."""
    block = torch.randn(1 << (22 if device == "cpu" else 28), device=device)  # 16 MiB, 1 GiB
    target = torch.empty_like(block)
    squares = [torch.randn(n, n, device=device) for n in (256, 512, 1024)]
    copy = _best(lambda: target.copy_(block), device)
    products = [
        2 * len(a) ** 3 / _best(lambda a=a: a @ a, device)  # type: ignore[misc]
        for a in squares
    ]
    return {"bytes_per_second": 8 * block.numel() / copy, "flops_per_second": max(products)}


@functools.cache
def ceilings(device: str) -> dict[str, Any]:
    """Measure what bounds all: copies, products, and the better of two eigensolvers by size."""
    eigh: dict[str, float] = {}
    for scene in SCENES:
        key = f"{scene.groups}x{scene.eigen_size}"
        rows = scene.input(device=device).movedim(1, -1)
        rows = rows.reshape(-1, scene.groups, scene.size).transpose(0, 1)
        rows = rows.mT if scene.sample_side else rows
        matrix = rows.mT @ rows
        if key not in eigh:
            one = _best(lambda m=matrix: torch.linalg.eigh(m), device)  # type: ignore[misc]
            # The library decomposes groups one after another; they could run side by side.
            library = one / (min(scene.groups, torch.get_num_threads()) if device == "cpu" else 1)
            ours = _best(lambda m=matrix: fastwhiten.symmetric_eigh(m), device)  # type: ignore[misc]
            eigh[key] = min(library, ours)
    return {**speeds(device), "eigh": eigh}


def _best(function: Callable[[], object], device: str) -> float:
    timed = memory.synchronised(function, device)
    return min(memory.seconds(timed) for _ in range(10))
