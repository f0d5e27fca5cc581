"""The decisions that setup.py takes, as small functions without side effects (tests/test_build.py).

Nothing here imports torch: the functions run before it is known whether there is one.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

MIN_TORCH = (2, 10)
# LibTorch's stable ABI as of torch 2.10: one binary serves that and every later torch.
TORCH_TARGET = "0x020a000000000000"
# What each module is compiled from, below csrc/.
SOURCES = {
    "fastwhiten_cpu": ("module.cpp", "cpu/*.cpp"),
    "fastwhiten_cuda": ("cuda/*.cu", "cuda/*.cpp"),
}
# What one translation unit of torch's headers plus templates may take at -O3, with room to spare.
BYTES_PER_JOB = 2 * 2**30
BYTES_PER_NVCC = 4 * 2**30  # the same by nvcc, for several architectures


def sources(root: Path, module: str) -> list[str]:
    """Return what `module` is compiled from, relative to the checkout `root`."""
    found = [path for pattern in SOURCES[module] for path in (root / "csrc").glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def refuse_free_threaded(gil_disabled: bool) -> None:
    """Raise RuntimeError on a free-threaded Python: it cannot load abi3 modules."""
    if gil_disabled:
        raise RuntimeError(
            "fastwhiten: expected a Python with the global interpreter lock (the extension uses "
            f"the limited API), got the free-threaded {sys.version.split()[0]}; use the default "
            "build of Python 3.10 or later"
        )


def environment_path(executable: str) -> list[str]:
    """Return the module path of the environment that `executable` belongs to.

    pip builds in an isolated environment that it lays over the target one with PYTHONPATH. The
    target's interpreter, asked without the PYTHON* variables (-E), shows what lies below: its own
    site-packages, and the system's or the user's where they count.
    """
    code = "import sys; print('\\n'.join(sys.path))"
    result = subprocess.run(
        [executable, "-E", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return [entry for entry in result.stdout.splitlines() if entry]


def release(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as "2.13.0+cpu" or "2.15.0a0+git1234"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"fastwhiten: expected a version such as 2.13.0, got {version!r}")
    return int(match[1]), int(match[2])


def find_torch(path: list[str]) -> str | None:
    """Return the version of the torch on `path`, or None where there is none that will do."""
    for distribution in metadata.distributions(name="torch", path=path):
        # The first one is the one that `import torch` takes.
        return distribution.version if release(distribution.version) >= MIN_TORCH else None
    return None


def max_jobs(cpus: int, memory: int, cuda: bool = False) -> int:
    """Return how many compilers may run at once on `cpus` processors and `memory` bytes."""
    return max(1, min(cpus, memory // (BYTES_PER_NVCC if cuda else BYTES_PER_JOB)))


def usable_memory(physical: int, limit: str = "/sys/fs/cgroup/memory.max") -> int:
    """Return the bytes that this process may use: a container's limit, if below the machine's.

    Args:
        physical: bytes of the machine.
        limit: file with the limit of control groups, version 2: a number, or "max" for none.
    """
    try:
        text = Path(limit).read_text(encoding="utf-8").strip()
    except OSError:
        return physical
    return min(physical, int(text)) if text.isdigit() else physical


def compile_flags(folders: list[str], sanitize: str) -> list[str]:
    """Return the C++ flags.

    Args:
        folders: what to leave out of the file names in messages and in the binary, which then
            depends neither on where it was built nor on where torch lies.
        sanitize: a list for -fsanitize such as "address,undefined", or an empty string.
    """
    flags = [
        "-O3",
        # torch's own default differs between versions; its stable headers need no more than this.
        "-std=c++17",
        "-fno-math-errno",  # a root is one instruction, not one and a call that sets errno
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        *[f"-ffile-prefix-map={folder}/=" for folder in folders],
    ]
    return [*flags, *sanitize_flags(sanitize)] if sanitize else [*flags, "-g0"]


def sanitize_flags(sanitize: str) -> list[str]:
    """Return what compiler and linker both need for the sanitizers (none for an empty list)."""
    if not sanitize:
        return []
    # -O1, the last of two levels counts: at -O3 the instrumented kernels compile for minutes.
    options = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    return [f"-fsanitize={sanitize}", *options]


def extension() -> ModuleType:
    """Return fastwhiten/backends/extension.py, without importing the package, which needs torch."""
    path = Path(__file__).resolve().parents[1] / "fastwhiten" / "backends" / "extension.py"
    spec = importlib.util.spec_from_file_location("extension", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags_info(flags: list[str]) -> dict[str, str]:
    """Return what is recorded of the C++ compiler's flags: no folder, so reproducible."""
    shown = [flag for flag in flags if not flag.startswith("-ffile-prefix-map=")]
    return {"flags": " ".join(shown), "torch_target": TORCH_TARGET}


def build_header(build: dict[str, object]) -> str:
    """Return the text of fastwhiten_build.h: `build` as JSON in a string of C++."""
    return (
        "// How the modules are built; written by setup.py.\n#pragma once\n"
        f'#define FASTWHITEN_BUILD R"json({json.dumps(build)})json"\n'
    )


def write_if_changed(path: Path, text: str) -> None:
    """Write `text` unless it stands there: what depends on the file is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
