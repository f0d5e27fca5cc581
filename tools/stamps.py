"""Which checks of the kernels have passed with the sources as they are: tools/stamps.json.

    python tools/stamps.py stale NAME   exit status 0 if the check has to run (and why), 1 if not
    python tools/stamps.py write NAME   after it has passed: remember the sources

tools/kernel_checks.sh runs these checks. A stamp is the fingerprint of all that a check depends on,
so a change of any of it makes the check run again; stamps are committed with the change.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import build_helpers

ROOT = Path(__file__).resolve().parent.parent
STAMPS = Path(__file__).with_suffix(".json")
extension = build_helpers.extension()
ENDINGS = (*extension.SUFFIXES, ".py", ".sh", ".csv", ".json", ".txt")

_TRITON = (
    "fastwhiten/kernels",
    "fastwhiten/backends/triton.py",
    "fastwhiten/backends/stages.py",
)
_COMPILING = ("tools/triton_launches.py", "tools/triton_resources.py")
_TABLE = "tools/triton_resources.json"
_STAGES = "test_stages test_stages_apply test_whole_passes test_eigensolver test_large_products"
# Those of tests/gpu/test_public.py.
_PUBLIC = "accuracy amp autograd determinism functional layout modules nonfinite shrinkage sides"
_BUILD = ("setup.py", "tools/build_cuda.py", "tools/build_helpers.py")
SOURCES: dict[str, tuple[str, ...]] = {
    "triton-resources": (*_TRITON, *_COMPILING, _TABLE),
    "triton-versions": (
        *_TRITON,
        *_COMPILING,
        "tools/triton_versions.sh",
        "tests/conftest.py",
        "tests/helpers",
        "tests/kernels/test_jacobi.py",
        "tests/kernels/test_intensity.py",
        "tests/kernels/test_tuning.py",
        "tests/backends/test_whole_passes.py",
    ),
    "triton-launches": (
        *_TRITON,
        *_COMPILING,
        _TABLE,
        "tests/conftest.py",
        "tests/csrc/eigensystems.py",
        "tests/gpu",
        "tests/helpers",
        *(f"tests/backends/{name}.py" for name in _STAGES.split()),
        *(f"tests/test_{name}.py" for name in _PUBLIC.split()),
    ),
    "cuda": (
        *_BUILD,
        "csrc/common",
        "csrc/ops",
        "csrc/cuda",
        "tests/csrc/drivers/launches.cpp",
        "tests/csrc/emulator",
        "tools/kernel_launches.py",
        "tools/kernel_resources.py",
    ),
    "kernel-model": (
        "csrc/common",
        "csrc/cuda",
        "tests/csrc/drivers",
        "tests/csrc/emulator",
        "tests/csrc/machine",
        "tests/csrc/compiled.py",
        "tests/csrc/emulated_stages.py",
        "tests/csrc/emulation.py",
        "tools/build_cuda.py",
        "tools/compiled_kernels.py",
        "tools/kernel_model.py",
        "tools/sass.py",
        "benchmarks/bench_eigh.py",
        "benchmarks/scenes.py",
    ),
    "sanitizers": (
        *_BUILD,
        "csrc/module.cpp",
        "csrc/common",
        "csrc/ops",
        "csrc/cpu",
        "tests/helpers",
        *(f"tests/backends/{name}.py" for name in _STAGES.split()),
        "tests/test_sides.py",
        "tests/test_nonfinite.py",
    ),
}


def fingerprint(name: str) -> str:
    """Return the fingerprint of what the check depends on; of constraints.txt, Triton's line."""
    found = str(extension.fingerprint(ROOT, extension.files(ROOT, SOURCES[name], ENDINGS)))
    if not name.startswith("triton"):
        return found
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.startswith("triton==")]
    return hashlib.sha256("\n".join([found, *pins]).encode()).hexdigest()[:16]


def read() -> dict[str, str]:
    """Return the fingerprint with which each check passed last."""
    return json.loads(STAMPS.read_text(encoding="utf-8")) if STAMPS.exists() else {}


def main(command: str, name: str) -> int:
    """Carry out a command; return the exit status."""
    if name not in SOURCES or command not in ("stale", "write"):
        print(f"expected stale or write, and one of {list(SOURCES)}; got {command} {name}")
        return 2
    now, before = fingerprint(name), read()
    if command == "write":
        text = json.dumps({**before, name: now}, indent=1, sort_keys=True) + "\n"
        STAMPS.write_text(text, encoding="utf-8")
        return 0
    if before.get(name) == now:
        print(f"{name}: passed with the same sources ({now})")
        return 1
    print(f"{name}: sources are {now}, the last that passed {before.get(name, 'none')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
