"""What setup.py decides about the CUDA module: whether, with which nvcc, for which architectures.

Small functions (tests/test_build_cuda.py); nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from build_helpers import TORCH_TARGET

# Binaries for the two that most machines have; the PTX is compiled by the driver for newer ones.
# More binaries cost a minute of building each: TORCH_CUDA_ARCH_LIST asks for them.
DEFAULT_ARCHS = "8.0;9.0+PTX"
MIN_ARCH = (8, 0)


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder and nvcc's version."""

    home: str
    version: tuple[int, int]


class Decision(NamedTuple):
    """Whether to build the CUDA module, and the line that says why."""

    build: bool
    message: str


def nvcc_candidates(environment: Mapping[str, str]) -> list[str]:
    """Return where nvcc may lie: CUDA_HOME, CUDA_PATH, PATH, the usual folder, in this order."""
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    folders = [f"{home}/bin" for home in homes]
    folders += [f for f in environment.get("PATH", "").split(os.pathsep) if f]
    folders.append("/usr/local/cuda/bin")
    paths = [str(Path(folder, "nvcc")) for folder in folders]
    return [path for path in paths if os.access(path, os.X_OK)]


def find_toolkit(environment: Mapping[str, str]) -> Toolkit | None:
    """Return the toolkit of the first nvcc that works, or None.

    nvcc is asked for its folder: the one on PATH can be a script that starts another.
    """
    for nvcc in nvcc_candidates(environment):
        try:
            home = parse_home(_output([nvcc, "--dryrun", "x.cu"]))
            version = parse_version(_output([nvcc, "--version"]))
        except OSError:
            continue
        if home is not None and version is not None:
            return Toolkit(str(Path(home).resolve()), version)
    return None


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout + result.stderr


def parse_home(dryrun: str) -> str | None:
    """Return the toolkit's folder from the output of `nvcc --dryrun`."""
    match = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    return match[1].strip() if match else None


def parse_version(shown: str) -> tuple[int, int] | None:
    """Return (major, minor) from the output of `nvcc --version`."""
    match = re.search(r"release (\d+)\.(\d+)", shown)
    return (int(match[1]), int(match[2])) if match else None


def decide(setting: str, torch_cuda: str | None, toolkit: Toolkit | None) -> Decision:
    """Decide whether to build the CUDA module for `FASTWHITEN_CUDA=setting`.

    Whether a GPU is visible plays no part: images are built where there is none.

    Args:
        setting: auto, 0 or 1.
        torch_cuda: torch.version.cuda, None for a CPU build of torch.
        toolkit: what :func:`find_toolkit` found.

    Raises:
        ValueError: the setting is unknown.
        RuntimeError: the setting is 1 and something is missing; the text says what.
    """
    if setting not in ("auto", "0", "1"):
        raise ValueError(
            f"fastwhiten: expected FASTWHITEN_CUDA to be auto, 0 or 1, got {setting!r}"
        )
    if setting == "0":
        return Decision(False, "fastwhiten: building the CPU module only (FASTWHITEN_CUDA=0)")
    reason = missing(torch_cuda, toolkit)
    if reason is None and toolkit is not None:
        shown = ".".join(map(str, toolkit.version))
        return Decision(True, f"fastwhiten: building the CUDA module with nvcc {shown}")
    if setting == "1":
        raise RuntimeError(f"fastwhiten: FASTWHITEN_CUDA=1, but {reason}")
    return Decision(False, f"fastwhiten: building the CPU module only ({reason})")


def missing(torch_cuda: str | None, toolkit: Toolkit | None) -> str | None:
    """Return what the CUDA module lacks and how to get it; None if it can be built."""
    if torch_cuda is None:
        return "torch is a CPU build; install one with CUDA to get the CUDA kernels"
    major = int(torch_cuda.split(".")[0])
    if toolkit is None:
        return (
            f"no nvcc was found; install a CUDA {major} toolkit, or set CUDA_HOME to where it lies"
        )
    if toolkit.version[0] != major:
        found = ".".join(map(str, toolkit.version))
        return (
            f"nvcc {found} in {toolkit.home} is of another major version than torch's CUDA "
            f"{torch_cuda}; set CUDA_HOME to a CUDA {major} toolkit, or install a torch for CUDA "
            f"{toolkit.version[0]}"
        )
    return None


def parse_archs(setting: str | None) -> list[str]:
    """Return what to compile for, from TORCH_CUDA_ARCH_LIST: "8.0;9.0+PTX" gives two entries.

    Raises:
        ValueError: an entry is no number, or below what the kernels need.
    """
    entries = [e for e in re.split(r"[;, ]+", setting or DEFAULT_ARCHS) if e]
    for entry in entries:
        match = re.fullmatch(r"(\d+)\.(\d+)[af]?(\+PTX)?", entry)
        if match is None or (int(match[1]), int(match[2])) < MIN_ARCH:
            raise ValueError(
                "fastwhiten: expected TORCH_CUDA_ARCH_LIST to be numbers from 8.0 such as "
                f"{DEFAULT_ARCHS!r}, got {entry!r}; set it to those of your GPUs, or unset it"
            )
    return entries


def gencode_flags(archs: list[str]) -> list[str]:
    """Return nvcc's flags: a binary per architecture, and PTX where it is asked for.

    Explicit flags also keep torch from looking for a visible GPU, which fails where there is none.
    """
    flags = []
    for entry in archs:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


# A kernel that spills or keeps arrays in local memory is slow without saying so.
STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"]


def nvcc_flags(
    archs: list[str], folders: list[str], headers: list[str], strict: bool = False
) -> list[str]:
    """Return nvcc's flags.

    Args:
        archs: what :func:`parse_archs` returned.
        folders: what to leave out of file names, as in `build_helpers.compile_flags`.
        headers: folders of torch's and CUDA's headers.
        strict: warnings, spills and local memory are errors, and ptxas says what kernels take.
    """
    return [
        *(STRICT if strict else []),
        "-O3",
        "-std=c++17",
        # torch declares what gives the current stream for this only
        "-DUSE_CUDA",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        "-Xcompiler=-fvisibility=hidden",
        *[f"-Xcompiler=-ffile-prefix-map={folder}/=" for folder in [*folders, *headers]],
        *[f"-isystem={folder}" for folder in headers],
        *gencode_flags(archs),
    ]
