"""Prepares the environment that `make` works in.

Usage:
    python tools/setup_env.py create FOLDER    makes a virtual environment
    python tools/setup_env.py install EXTRA... installs fastwhiten with extras beside this python

The package is installed as an editable one, so that the compiled module lies beside the sources
that `python -m training` and pytest import. A second run compiles only what has changed. Packages
that are installed already stay as they are; missing ones come in the versions of constraints.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from build_helpers import find_torch

ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 10)


def create(folder: str) -> None:
    """Make a virtual environment, one that sees the system's torch where there is one."""
    if sys.version_info < MIN_PYTHON:
        sys.exit(
            f"fastwhiten: expected Python >= 3.10, got {sys.version.split()[0]} "
            f"({sys.executable}); name another one: make PYTHON=python3.12 ..."
        )
    options = ["--system-site-packages"] if find_torch(sys.path) else []
    print(f"no environment is active: creating {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", *options, folder], check=True)


def missing_constraints(lines: list[str], installed: set[str]) -> list[str]:
    """Return those lines of constraints.txt whose package is not among the installed ones."""
    pinned = [line for line in lines if "==" in line and not line.startswith("#")]
    return [line for line in pinned if normalise(line.split("==")[0]) not in installed]


def normalise(name: str) -> str:
    """Return a distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def install(extras: list[str]) -> None:
    """Install torch where it is missing, then fastwhiten with `extras`.

    A torch that is too old ends the run with a message: replacing it is left to its owner.
    """
    installed = {normalise(str(d.metadata["Name"])) for d in metadata.distributions()}
    if "torch" in installed and find_torch(sys.path) is None:
        sys.exit(
            f"fastwhiten: expected torch >= 2.10, got {metadata.version('torch')} in {sys.prefix}; "
            "upgrade it, or deactivate this environment to get one of its own in .venv"
        )
    if find_spec("pip") is None:  # an environment made by uv
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        wanted = missing_constraints(lines, installed)
        constraints.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        pip += ["--constraint", str(constraints)]
        if "torch" not in installed:
            # First and by itself: building fastwhiten uses the environment's torch.
            print("installing torch", flush=True)
            subprocess.run([*pip, "torch"], check=True)
        print(f"installing fastwhiten [{','.join(extras)}] into {sys.prefix}", flush=True)
        subprocess.run([*pip, "--editable", f"{ROOT}[{','.join(extras)}]"], check=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"create": lambda: create(*arguments), "install": lambda: install(arguments)}[command]()
