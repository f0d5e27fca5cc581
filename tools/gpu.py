"""Everything that needs a GPU, the most valuable first: make gpu [PART="targets native"].

first       ten minutes:
    build       both modules for this machine's GPU, in place, unless they are there; in every call
    targets     benchmarks/bench_targets.py: the times that the kernels are judged by
    native      tests/gpu: CUDA C++
    memcheck, synccheck
                compute-sanitizer over tests/gpu/test_sanitized.py, CUDA C++
second      ten more:
    eigensolvers
                ours, the library's and CuPy's
    racecheck   compute-sanitizer's third tool, the slowest
    triton      tests/gpu: Triton's kernels, compiled
    triton-memcheck
                compute-sanitizer over those that were compiled just now
third       and the last ten:
    counters    benchmarks/kernel_counters.py: Nsight Compute; skipped where it is not to be had
    products, stages
                beside the library's products and plain PyTorch
    whitening   everybody beside the rivals

A PART is one of these names. Each part is stopped at its limit, and all of them after --seconds;
the last lines say how each ended and how to do the rest. Results grow in benchmarks/results/gpu/:
summary.txt, log.txt and benchmarks.json in a folder by the GPU's name, and copies of the three in
--copy-to, written after every part. Exit status 0: every part passed and every target was reached.
--dry-run tries some of each part without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
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
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
SECONDS, GRACE = 570.0, 10.0  # for everything; between asking a part to end and making it
SKIPPED = 77  # a part's exit status where what it needs is not to be had; its last line says what
GOOD = ("passed", "skipped")
GROUPS = {
    "first": ("build", "targets", "native", "memcheck", "synccheck"),
    "second": ("eigensolvers", "racecheck", "triton", "triton-memcheck"),
    "third": ("counters", "products", "stages", "whitening"),
}
# How many of a part's last lines the summary shows: of others one, of one that fails at least 20.
SHOWN = {"targets": 20, "eigensolvers": 12, "counters": 24, "products": 16}
NEEDED = {"pytest": "pytest", "pytest_timeout": "pytest-timeout"}
NEEDED |= {"pytest_benchmark": "pytest-benchmark", "triton": "triton"}
# Nothing to compile where the kernels are those of csrc/ and of this GPU: built before, or brought.
BUILD = """
built="import fastwhiten.backends as b; reason = b.available()['$1']; assert reason is None, reason"
"$0" -c "$built" || "$0" setup.py build_ext --inplace --parallel 2 && "$0" -c "$built" &&
"$0" -m fastwhiten.info
"""


def parts(dry: bool, folder: Path) -> dict[str, tuple[float, list[str]]]:
    """Return the seconds after which each part is stopped, and its command, in order."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider"]
    pytest += ["-p", "timeout", "-p", "benchmark", "-o", "faulthandler_timeout=60"]
    tests = [*pytest, *side_by_side(), "--tier", "all"]
    tests += ["tests/gpu/test_devices.py" if dry else "tests/gpu"]
    cases = [*pytest, "--tier", "all", "tests/gpu/test_sanitized.py"]
    check: Callable[[str], list[str]] = (lambda tool: []) if dry else sanitize
    native, triton = ["-m", "not interpret"], ["-m", "interpret"]
    bench = [*pytest, "--benchmark-only", "--device", "cpu" if dry else "cuda"]
    bench += ["--benchmark-json", f"{folder}/new.json"]
    one = (lambda case: ["-k", case]) if dry else lambda case: []
    alone = [f"benchmarks/bench_{name}.py" for name in ("targets", "eigh", "products", "stages")]
    targets, eigh, products, stages = alone
    others = ["benchmarks", *(f"--ignore={path}" for path in alone)]
    counters = [sys.executable, "-m", "benchmarks.kernel_counters"]
    # Shared memory and barriers of Triton's kernels are its compiler's: memcheck alone takes both.
    found: dict[str, tuple[float, list[str]]] = {
        "build": (140, ["bash", "-c", BUILD, sys.executable, "native" if dry else "cuda"]),
        "targets": (90, [*bench, targets]),
        "native": (130, [*tests, *native]),
        "memcheck": (110, [*check("memcheck"), *cases, *native]),
        "synccheck": (90, [*check("synccheck"), *cases, *native]),
        "eigensolvers": (90, [*bench, eigh, *one("[1-16")]),
        "racecheck": (150, [*check("racecheck"), *cases, *native]),
        "triton": (210, [*tests, *triton]),
        "triton-memcheck": (90, [*check("memcheck"), *cases, *triton, *one("shape0")]),
        "counters": (150, [*counters, "--device", "cpu" if dry else "cuda"]),
        "products": (60, [*bench, products, *one("8192x256-apply")]),
        "stages": (190, [*bench, stages, *one("128x64-apply")]),
        "whitening": (SECONDS, [*bench, "--all", *others, *one("128x64-both")]),
    }
    return {name: (_patience(dry) * limit, command) for name, (limit, command) in found.items()}


def _patience(dry: bool) -> float:
    return 10.0 if dry else 1.0  # without a GPU, a busy machine is to fail nothing


def side_by_side() -> list[str]:
    """Return pytest's options for as many processes as there are processors."""
    if importlib.util.find_spec("xdist") is None:
        return []
    # Of "auto", where psutil is installed, half of them remain.
    return ["-p", "xdist", "-n", str(len(os.sched_getaffinity(0))), "--dist", "worksteal"]


def sanitize(tool: str) -> list[str]:
    """Return the command that runs another one and checks our kernels, which are slow then."""
    sources = "".join(path.read_text() for path in (ROOT / "fastwhiten/kernels").glob("*.py"))
    names = ["fastwhiten", *sorted(set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE)))]
    only = [option for name in names for option in ("--kernel-name", f"kns={name}")]
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("compute-sanitizer") or f"{home}/bin/compute-sanitizer"
    # A call of CUDA that fails raises; libraries try some that may fail.
    quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [program, "--tool", tool, *quiet, *only, "--error-exitcode", "9"]


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
    return {0: "passed", SKIPPED: "skipped"}.get(status, f"failed with status {status}")


def variables(part: str, dry: bool) -> dict[str, str]:
    """Return the environment of a part."""
    found = {**os.environ, "FASTWHITEN_TEST_DEVICE": "cpu" if dry else "cuda"}
    # Other plugins of pytest that happen to be installed take time in every process, at the least.
    found |= {"PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found.get('PATH', '')}"  # ninja
    if part.endswith("check"):  # the allocator would hide what runs over a tensor's end
        found["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if part in ("native", "triton"):  # there are as many processes as processors
        found["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if dry:
        return found | {"TRITON_INTERPRET": "1"}
    found.setdefault("TORCH_CUDA_ARCH_LIST", ".".join(map(str, torch.cuda.get_device_capability())))
    # A machine with such a GPU has the memory, though a virtual one may show only a part of it.
    found.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    # Triton's kernels, torch.compile's too, are to be compiled.
    return found | {"TRITON_INTERPRET": "0", "FASTWHITEN_CUDA": "1"}


def gather(folder: Path, copies: Path | None) -> None:
    """Add what the part has measured to benchmarks.json; copy all results."""
    new, every = folder / "new.json", folder / "benchmarks.json"
    if new.exists():
        old = json.loads(every.read_text(encoding="utf-8")) if every.exists() else {}
        with contextlib.suppress(ValueError):  # nothing was measured, or the part was killed
            found = report.merge(old, json.loads(new.read_text(encoding="utf-8")))
            every.write_text(json.dumps(found), encoding="utf-8")
        new.unlink()
    if copies is not None:
        for path in folder.iterdir():
            shutil.copy(path, copies)


def arguments(given: list[str]) -> argparse.Namespace:
    """Return what is asked for, the parts by their own names; exit with what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [name for names in GROUPS.values() for name in names]
    parser.add_argument("parts", nargs="*", metavar="PART", help="all by default")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all, default %(default)g"
    )
    parser.add_argument(
        "--copy-to",
        type=Path,
        default=os.environ.get("FASTWHITEN_RESULTS") or None,
        help="another folder for the results; by default FASTWHITEN_RESULTS",
    )
    options = parser.parse_args(given)
    if not {*options.parts} <= {*GROUPS, *every}:
        parser.error(f"expected parts among {', '.join([*GROUPS, *every])}, got {options.parts}")
    missing = [wanted for name, wanted in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{sys.executable} has no {', '.join(missing)}")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False; --dry-run tries the parts without a GPU")
    asked = {name for part in options.parts for name in GROUPS.get(part, (part,))}
    options.parts = [name for name in every if not asked or name in {"build", *asked}]
    if options.copy_to is not None:
        options.copy_to.mkdir(parents=True, exist_ok=True)
    return options


def main(given: list[str]) -> int:
    """Do the parts that are asked for; return 0 if all have passed."""
    start = time.monotonic()
    options = arguments(given)
    dry = options.dry_run
    gpu = "dry-run" if dry else re.sub(r"[^\w.-]+", "-", torch.cuda.get_device_name())
    folder = RESULTS / gpu
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # children get the default back
        signal.signal(number, signal.default_int_handler)

    def say(text: str) -> None:
        print(text, flush=True)
        with (folder / "summary.txt").open("a", encoding="utf-8") as summary:
            print(text, file=summary)

    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "triton", "numpy")]
    versions += [f"CUDA {torch.version.cuda}", f"{len(os.sched_getaffinity(0))} processors"]
    say(f"== {datetime.now():%Y-%m-%d %H:%M}, {gpu}, {', '.join(versions)}")
    if not side_by_side():
        say("pytest-xdist is not installed: the tests run in one process")
    outcomes: dict[str, str] = {}
    for name, (limit, command) in parts(dry, folder).items():
        if name not in options.parts:
            continue
        left = _patience(dry) * options.seconds - (time.monotonic() - start)
        if "interrupted" in outcomes.values() or outcomes.get("build", "passed") != "passed":
            outcomes[name] = "not begun"
        elif left < GRACE:
            outcomes[name] = "not begun: no time left"
        else:
            begun, log = time.monotonic(), folder / "log.txt"
            written = log.stat().st_size if log.exists() else 0
            outcomes[name] = perform(command, variables(name, dry), log, min(limit, left))
            lines = log.read_bytes()[written:].decode(errors="replace").splitlines()
            shown = max(SHOWN.get(name, 1), 20 * (outcomes[name] not in GOOD))
            say("\n".join(lines[-shown:]))
            say(f"-- {name}: {outcomes[name]} ({time.monotonic() - begun:.0f} s)")
            gather(folder, options.copy_to)
    say("\n".join(f"{name:<16}{outcome}" for name, outcome in outcomes.items()))
    failed = [name for name, how in outcomes.items() if how not in GOOD]
    if failed:
        say(f"NOT GOOD; the rest, or once more: make gpu PART={' '.join(failed)!r}")
    gather(folder, options.copy_to)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
