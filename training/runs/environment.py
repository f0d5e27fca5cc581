"""What a run was made with: versions, machine, command line, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastwhiten import backends, info

_PACKAGES = ("fastwhiten", "torch", "numpy", "scikit-learn", "matplotlib", "jsonargparse", "rich")


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package; null if it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None  # for instance fastwhiten imported from a checkout
    return found


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what is needed to understand, or repeat, a run. Bits depend on the thread count."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": str(device),
        "gpu": cuda,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "backend": backends.choose("auto", device),
        "kernels": info.build(),
        "argv": sys.argv,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the checkout's commit, with "+changes" if files differ from it; null if unknown."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout, or no git: a release archive runs as well
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return result.stdout.strip()
