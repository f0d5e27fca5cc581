"""Compiles CUDA kernels for sm_90 as setup.py does, and disassembles them. Needs no GPU.

nvdisasm is the toolkit's, one on PATH, or that of Triton's wheel.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import build_cuda
import build_helpers
import kernel_resources
import sass

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "sass"
ARCH = "9.0"


def toolkit() -> build_cuda.Toolkit:
    """Return the toolkit that compiles.

    Raises:
        SystemExit: there is none.
    """
    found = build_cuda.find_toolkit(os.environ)
    if found is None:
        sys.exit("expected an nvcc (CUDA_HOME or PATH), found none")
    return found


def nvcc_version() -> str:
    """Return nvcc's version."""
    return ".".join(map(str, toolkit().version))


def find_disassembler(home: str) -> str:
    """Return nvdisasm.

    Raises:
        SystemExit: there is none.
    """
    folders = [f"{home}/bin", *os.environ.get("PATH", "").split(os.pathsep)]
    folders += [f"{path}/triton/backends/nvidia/bin" for path in sys.path]
    for folder in folders:
        if os.access(path := f"{folder}/nvdisasm", os.X_OK):
            return path
    sys.exit("expected nvdisasm (CUDA_HOME, PATH or Triton's wheel), found none")


def kernels_of(source: Path, folders: Iterable[Path] = (CSRC,)) -> list[sass.Kernel]:
    """Return the kernels of a source; ``folders`` are where it includes from.

    Raises:
        SystemExit: there is no nvcc or no nvdisasm, or the source does not compile.
    """
    found = toolkit()
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernels.cubin"
        command = [f"{found.home}/bin/nvcc", *build_cuda.nvcc_flags([ARCH], [], [])]
        # Lines of the source change nothing in the code.
        command += ["-lineinfo", "-Xptxas", "-v", "-cubin", *(f"-I{path}" for path in folders)]
        result = subprocess.run(
            [*command, str(source), "-o", cubin], capture_output=True, text=True
        )
        if result.returncode != 0:
            sys.exit(f"{source}: nvcc failed:\n{result.stderr}")
        shown = subprocess.run(
            [find_disassembler(found.home), "-c", "-g", "-hex", cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    code = sass.parse(shown)
    return [sass.Kernel(name, *of, code[name]) for name, of in _resources(result.stderr).items()]


def _resources(shown: str) -> dict[str, tuple[int, int]]:
    """Return kernel -> (registers, bytes of static shared memory) from what ptxas says."""
    found = {}
    for entry in kernel_resources.ENTRY.finditer(shown):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        found[entry["name"]] = (int(entry["registers"]), int(shared[1]) if shared else 0)
    return found


def programs(names: Iterable[str]) -> str:
    """Return what the machine reads, of kernels of csrc/cuda by their mangled names.

    What is compiled stays in build/sass until a source changes.

    Raises:
        SystemExit: as :func:`kernels_of`, or one of them is no kernel.
    """
    folder = _cache()
    files = {name: folder / hashlib.sha256(name.encode()).hexdigest()[:24] for name in names}
    lacking = [name for name, file in files.items() if not file.exists()]
    if lacking:
        with tempfile.TemporaryDirectory() as work:
            source = Path(work) / "instances.cu"
            source.write_text(_instances(lacking), encoding="utf-8")
            compiled = {kernel.name: kernel for kernel in kernels_of(source)}
        for name in lacking:
            if name not in compiled:
                sys.exit(f"{name}: compiled, but not found; is it a template of csrc/cuda?")
            unfinished = files[name].with_suffix(f".{os.getpid()}")
            unfinished.write_text(sass.program([compiled[name]]), encoding="utf-8")
            unfinished.rename(files[name])
    return "".join(file.read_text(encoding="utf-8") for file in files.values())


def _cache() -> Path:
    extension = build_helpers.extension()
    entries = [CSRC, *(ROOT / "tools" / f"{name}.py" for name in ("sass", "compiled_kernels"))]
    sources = extension.files(ROOT, entries, (*extension.SUFFIXES, ".py"))
    text = f"{extension.fingerprint(ROOT, sources)} {toolkit()}"
    folder: Path = CACHE / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _instances(names: list[str]) -> str:
    """Return a source that instantiates kernels: what else is in their files takes no time."""
    headers = sorted(path.name for path in (CSRC / "cuda").glob("*.cuh"))
    shown = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return "\n".join(
        [
            *(f'#include "cuda/{header}"' for header in headers),
            *(f"template __global__ {signature};" for signature in shown),
            "",
        ]
    )
