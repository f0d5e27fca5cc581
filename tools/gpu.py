"""Everything that needs a GPU, the most valuable first: make gpu [PART="targets native"].

    build       the CUDA module for this machine's GPU, in place, unless it is there; in every call
    targets     benchmarks/bench_targets.py: the times that the kernels are judged by
    native      tests/gpu: CUDA C++
    memcheck, synccheck
                compute-sanitizer over tests/gpu/test_sanitized.py
    triton      tests/gpu: Triton's kernels, compiled
    racecheck   compute-sanitizer's third tool, the slowest
    benchmarks  everybody beside the rivals, by the device's clock too

Each part is stopped at its limit, and all of them before ten minutes are over; the last lines say
how each ended and how to do the rest. Results go to benchmarks/results/<GPU>/: summary.txt and
log.txt, which grow, targets.json and benchmarks.json, of the last time. Exit status 0: every part
passed and every target was reached. DEVICE=cpu tries some of each part without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SECONDS, GRACE = 570.0, 10.0  # for everything; between asking a part to end and making it
# Nothing to compile where the kernels are those of csrc/ and of this GPU.
BUILD = """
built="import fastwhiten.backends as b; reason = b.available()['$1']; assert reason is None, reason"
"$0" -c "$built" || "$0" setup.py build_ext --inplace && "$0" -c "$built" && "$0" -m fastwhiten.info
"""


def parts(device: str, folder: Path) -> dict[str, tuple[float, list[str]]]:
    """Return the seconds after which each part is stopped, and its command, in order."""
    dry = device == "cpu"
    pytest = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider"]
    pytest += ["-o", "faulthandler_timeout=60"]  # what hangs shows where in the log
    tests = [*pytest, "--tier", "all", "tests/gpu/test_devices.py" if dry else "tests/gpu"]
    tests += [] if dry else ["-n", "auto", "--dist", "loadgroup"]
    cases = [*pytest, "--tier", "all", "tests/gpu/test_sanitized.py"]
    check: Callable[[str], list[str]] = (lambda tool: []) if dry else sanitize
    native, triton = ["-m", "not interpret"], ["-m", "interpret"]
    bench = [*pytest, "--benchmark-only", "--device", device, "--benchmark-json"]
    others = [f"{folder}/benchmarks.json", "benchmarks", "--ignore=benchmarks/bench_targets.py"]
    others += ["-k", "[1-16 or 128x64-apply or 8192x256-apply"] if dry else []
    # Shared memory and barriers of Triton's kernels are its compiler's: memcheck alone takes both.
    found: dict[str, tuple[float, list[str]]] = {
        "build": (240, ["bash", "-c", BUILD, sys.executable, "native" if dry else "cuda"]),
        "targets": (90, [*bench, f"{folder}/targets.json", "benchmarks/bench_targets.py"]),
        "native": (120, [*tests, *native]),
        "memcheck": (90, [*check("memcheck"), *cases]),
        "synccheck": (60, [*check("synccheck"), *cases, *native]),
        "triton": (180, [*tests, *triton]),
        "racecheck": (120, [*check("racecheck"), *cases, *native]),
        "benchmarks": (SECONDS, [*bench, *others]),
    }
    return {name: (_patience(device) * limit, command) for name, (limit, command) in found.items()}


def _patience(device: str) -> float:
    return 1.0 if device == "cuda" else 10.0  # without a GPU, a busy machine is to fail nothing


def sanitize(tool: str) -> list[str]:
    """Return the command that runs another one and checks our kernels, which are slow then."""
    sources = "".join(path.read_text() for path in (ROOT / "fastwhiten/kernels").glob("*.py"))
    names = ["fastwhiten", *sorted(set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE)))]
    only = [option for name in names for option in ("--kernel-name", f"kns={name}")]
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("compute-sanitizer") or f"{home}/bin/compute-sanitizer"
    return [program, "--tool", tool, *only, "--error-exitcode", "9"]


def perform(command: list[str], environment: dict[str, str], log: Path, seconds: float) -> str:
    """Run a command in a process group of its own; return "passed", or how it ended."""
    with log.open("a", encoding="utf-8") as output:
        print(f"\n=== {' '.join(command)}", file=output, flush=True)
        process = subprocess.Popen(
            ["env", *command],  # which says so where there is no such program
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        except KeyboardInterrupt:
            return "interrupted"
        finally:  # an interrupt first, on which pytest writes what it has
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(GRACE)
    return "passed" if status == 0 else f"failed with status {status}"


def variables(device: str) -> dict[str, str]:
    """Return the environment of every part."""
    found = {**os.environ, "FASTWHITEN_TEST_DEVICE": device, "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        return found | {"TRITON_INTERPRET": "1"}
    arch = ".".join(map(str, torch.cuda.get_device_capability()))
    found.setdefault("TORCH_CUDA_ARCH_LIST", arch)
    # Triton's kernels, torch.compile's too, are to be compiled.
    return found | {"TRITON_INTERPRET": "0", "FASTWHITEN_CUDA": "1"}


def main(arguments: list[str]) -> int:
    """Do the parts that are asked for; return 0 if all have passed."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all by default")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args(arguments)
    dry = options.device == "cpu"
    if not dry and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False; DEVICE=cpu tries the parts without a GPU")
    gpu = "dry-run" if dry else re.sub(r"[^\w.-]+", "-", torch.cuda.get_device_name())
    folder = RESULTS / gpu
    every = parts(options.device, folder)
    if not {*options.parts} <= {*every}:
        parser.error(f"expected parts among {', '.join(every)}, got {options.parts}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # children get the default back
        signal.signal(number, signal.default_int_handler)

    def say(text: str) -> None:
        print(text, flush=True)
        with (folder / "summary.txt").open("a", encoding="utf-8") as summary:
            print(text, file=summary)

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "triton"))
    say(f"== {datetime.now():%Y-%m-%d %H:%M}, {gpu}, {versions}, CUDA {torch.version.cuda}")
    outcomes: dict[str, str] = {}
    for name, (limit, command) in every.items():
        if options.parts and name not in ("build", *options.parts):
            continue
        left = _patience(options.device) * SECONDS - (time.monotonic() - start)
        if "interrupted" in outcomes.values() or outcomes.get("build", "passed") != "passed":
            outcomes[name] = "not begun"
        elif left < GRACE:
            outcomes[name] = "not begun: no time left"
        else:
            begun, log = time.monotonic(), folder / "log.txt"
            environment = variables(options.device)
            if name.endswith("check"):  # the allocator would hide what runs over a tensor's end
                environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
            outcomes[name] = perform(command, environment, log, min(limit, left))
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            shown = 20 if name == "targets" or outcomes[name] != "passed" else 1
            say("\n".join(lines[-shown:]))
            say(f"-- {name}: {outcomes[name]} ({time.monotonic() - begun:.0f} s)")
    say("\n".join(f"{name:<11}{outcome}" for name, outcome in outcomes.items()))
    failed = [name for name, outcome in outcomes.items() if outcome != "passed"]
    if failed:
        say(f"NOT GOOD; the rest, or once more: make gpu PART={' '.join(failed)!r}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
