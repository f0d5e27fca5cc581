"""Everything that needs a GPU, in parts, within a time limit: tools/gpu_check.sh [PART...].

    build       installs fastwhiten (editable) with its CUDA module into the active environment
    tests       pytest tests/gpu: CUDA C++ kernels, and Triton's, compiled
    benchmarks  forward + backward against the peers, then CUDA C++ beside Triton stage by stage
    memcheck, racecheck, synccheck
                compute-sanitizer's tools on small cases (tools/gpu_cases.py)

A table of all of it comes last (tools/gpu_summary.py), whatever happened before. Results go to
$OUT, by default ./gpu-results: at most eight files, a log per kind of part, JSON for parts and
benchmarks. What has passed with the same sources is not done again in the same folder. Every part
has a limit of its own and is stopped there; with what is saved, the next run goes on.

--dry-run does on a machine without a GPU what can be done there, with the CPU's kernels and, for
what no other test runs, Triton's interpreter; --quick is a dry run of a minute.

Exit status: 0 if all parts passed, everybody was measured and every target was reached; 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import gpu_summary

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 570.0  # of ten minutes: what ends by itself is better than what is cut off
DRY_FACTOR = 6.0  # one core, and Triton's interpreter, in place of a GPU
GRACE = 10.0  # seconds between asking a part to end and making it
SOURCES = ("csrc", "fastwhiten", "benchmarks", "tests", "tools", "training", "setup.py")


@dataclass(frozen=True)
class Step:
    """A command of a part.

    Attributes:
        command: what is run, in the repository's root.
        environment: variables to add.
    """

    command: list[str]
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        steps: returns its commands, given the seconds that it has.
        limit: seconds after which it is stopped.
        least: seconds that earlier parts leave to it.
        usual: what it is expected to take on 16 cores and an H100, not measured yet.
        log: file in the results' folder.
    """

    steps: Callable[[Run, float], list[Step]]
    limit: float
    least: float
    usual: float
    log: str


class Interrupted(Exception):
    """Somebody asked this program to end."""


class Run:
    """One run of the program: options, the folder, and what is known of every part."""

    def __init__(self, folder: Path, dry: bool, quick: bool) -> None:
        """Read what earlier runs left in the folder."""
        self.folder, self.dry, self.quick = folder, dry, quick
        self.sources = fingerprint()
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / gpu_summary.PARTS_FILE
        try:
            self.state: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.state = {"parts": {}}
        if self.state.get("dry_run") != dry:
            self.state = {"parts": {}}
        self.state |= {"dry_run": dry, "sources": self.sources}
        self.environment = dict(os.environ)
        # Triton kernels, torch.compile's too, are to be compiled here; without a GPU, interpreted.
        self.environment["TRITON_INTERPRET"] = "1" if dry else "0"
        self.environment["PYTHONUNBUFFERED"] = "1"
        if dry:
            self.environment["FASTWHITEN_TEST_DEVICE"] = "cpu"

    def passed(self, name: str) -> bool:
        """Return whether a part has passed with these sources; a build must also be there still."""
        entry = self.state["parts"].get(name, {})
        if entry.get("state") != "passed" or entry.get("sources") != self.sources:
            return False
        return name != "build" or self.dry or self.call(IS_BUILT) == 0

    def call(self, code: str) -> int:
        """Run Python code in the environment under test, silently."""
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True
        ).returncode

    def record(self, name: str, state: str, seconds: float = 0.0) -> None:
        """Write down how a part stands; the file is whole at any time."""
        self.state["parts"][name] = {
            "state": state,
            "seconds": round(seconds, 1),
            "sources": self.sources,
            "log": PARTS[name].log,
        }
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.file)


def fingerprint() -> str:
    """Return what changes with any source file: parts that passed with other sources are redone."""
    digest = hashlib.sha256()
    for entry in SOURCES:
        path = ROOT / entry
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".sh"):
                if file.name != "_build_info.py":
                    digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


# --- the parts --------------------------------------------------------------------------------

IS_BUILT = (
    "import fastwhiten.backends as b; reason = b.available()['cuda']; "
    "assert reason is None, f'the CUDA kernels were not built: {reason}'"
)
GPU = (
    "import torch; assert torch.cuda.is_available(), 'torch.cuda.is_available() is False: "
    "a GPU and a CUDA build of PyTorch are needed; --dry-run tries the parts without them'; "
    "print(torch.cuda.get_device_name(), torch.__version__)"
)
# What building and testing need beside torch: module, and how pip calls it.
TOOLS = {"setuptools": "setuptools>=77", "ninja": "ninja", "pytest": "pytest"}


def python(*arguments: str | Path) -> list[str]:
    """Return a command of the interpreter that runs this program."""
    return [sys.executable, *map(str, arguments)]


def missing_tools() -> list[str]:
    """Return what pip has to install before the build: nothing where all is there, offline."""
    lacking = [need for name, need in TOOLS.items() if importlib.util.find_spec(name) is None]
    if not lacking and int(metadata.version("setuptools").split(".")[0]) < 77:
        lacking = [TOOLS["setuptools"]]
    return lacking


def gpu_architecture() -> str:
    """Return the compute capability of the GPU, such as "9.0"; "" where there is none."""
    code = (
        "import torch; print(*torch.cuda.get_device_capability(), sep='.')"
        " if torch.cuda.is_available() else None"
    )
    return subprocess.run(python("-c", code), capture_output=True, text=True).stdout.strip()


def build(run: Run, seconds: float) -> list[Step]:
    """Install with the CUDA module, for this machine's GPU alone: that is what will run."""
    if run.dry:
        return [Step(python("-c", "import fastwhiten._C"))]
    pip = ["-m", "pip", "install", "--disable-pip-version-check"]
    lacking = missing_tools()
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or gpu_architecture()
    variables = {"FASTWHITEN_CUDA": "1"} | ({"TORCH_CUDA_ARCH_LIST": archs} if archs else {})
    return [
        Step(python("-c", GPU)),
        *([Step(python(*pip, *lacking))] if lacking else []),
        Step(python(*pip, "--no-build-isolation", "--no-deps", "-e", "."), variables),
        Step(python("-c", IS_BUILT)),
        Step(python("-m", "fastwhiten.info")),
    ]


def tests(run: Run, seconds: float) -> list[Step]:
    """Every test for a GPU; in several processes where pytest-xdist is there.

    Triton compiles some hundred kernels, each on one core.
    """
    options = ["-q", "-p", "no:cacheprovider", f"--junit-xml={run.folder / gpu_summary.TESTS_FILE}"]
    # A test that hangs shows where in the log.
    options += ["-o", f"faulthandler_timeout={max(20.0, 0.6 * seconds):.0f}"]
    if not run.dry and importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    where = ["tests/gpu"]
    if run.quick:
        options += ["-m", "not slow", "-k", "native"]
        where = ["tests/gpu/test_devices.py", "tests/gpu/test_training.py"]
    return [Step(python("-m", "pytest", *options, *where))]


def benchmarks(run: Run, seconds: float) -> list[Step]:
    """Everything that is not in the file yet."""
    options = ["--output", run.folder / gpu_summary.BENCHMARKS_FILE, "--sources", run.sources]
    # A case under way may take some seconds more.
    options += ["--seconds", f"{max(5.0, 0.8 * seconds - GRACE):.0f}"]
    if run.dry:
        options += ["--device", "cpu", "--rounds", "2"]
    if run.quick:
        options += ["--small"]
    return [Step(python("-m", "benchmarks.gpu", *options))]


def sanitizer(tool: str) -> Callable[[Run, float], list[Step]]:
    """Return the steps of one of compute-sanitizer's tools."""

    def steps(run: Run, seconds: float) -> list[Step]:
        cases = python("tools/gpu_cases.py")
        if run.dry:  # the cases by themselves
            backends = ["native"] if run.quick or tool != "memcheck" else ["native", "triton"]
            return [Step([*cases, backend]) for backend in backends]
        command = [*sanitize(tool, ["fastwhiten"]), *cases, "native"]
        if tool != "memcheck":  # shared memory and barriers of Triton's kernels are the compiler's
            return [Step(command)]
        # PyTorch's allocator would hide what runs over a tensor's end.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        compiled = [*sanitize(tool, triton_kernels()), *cases, "triton"]
        return [Step(command, alone), Step(compiled, alone)]

    return steps


def triton_kernels() -> list[str]:
    """Return the names of the Triton kernels."""
    sources = (ROOT / "fastwhiten" / "kernels").glob("*.py")
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    return sorted(set(re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)))


def sanitize(tool: str, names: list[str]) -> list[str]:
    """Return the command that runs another one, checking kernels that have one of the names.

    The tools make kernels a hundred times slower; PyTorch's own need no check.
    """
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{h}/bin" for h in homes if h)])
    found = shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"
    only = [part for name in names for part in ("--kernel-name", f"kns={name}")]
    return [found, "--tool", tool, *only, "--error-exitcode", "9"]


PARTS = {
    "build": Part(build, limit=300, least=0, usual=120, log="build.log"),
    "tests": Part(tests, limit=240, least=90, usual=150, log="tests.log"),
    "benchmarks": Part(benchmarks, limit=240, least=90, usual=120, log="benchmarks.log"),
    "memcheck": Part(sanitizer("memcheck"), limit=90, least=30, usual=40, log="sanitizer.log"),
    "racecheck": Part(sanitizer("racecheck"), limit=90, least=30, usual=40, log="sanitizer.log"),
    "synccheck": Part(sanitizer("synccheck"), limit=60, least=20, usual=20, log="sanitizer.log"),
}


# --- doing them -------------------------------------------------------------------------------


def allowance(names: list[str], at: int, left: float, factor: float = 1.0) -> float:
    """Return the seconds for part ``at`` of those to do: its limit, or what later ones leave."""
    later = sum(PARTS[name].least for name in names[at + 1 :])
    return min(factor * PARTS[names[at]].limit, left - factor * later)


def perform(run: Run, name: str, seconds: float) -> str:
    """Do a part; return "passed", or how it ended."""
    log, until = run.folder / PARTS[name].log, time.monotonic() + seconds
    shared = sum(part.log == PARTS[name].log for part in PARTS.values()) > 1
    with log.open("a" if shared else "w", encoding="utf-8") as output:
        for step in PARTS[name].steps(run, seconds):
            print(f"== {name}: {' '.join(step.command)}", file=output, flush=True)
            status = execute(step, run.environment, output, until - time.monotonic())
            if status is None:
                return f"stopped after {seconds:.0f} s"
            if status != 0:
                return f"failed with status {status}"
    return "passed"


def execute(step: Step, environment: Mapping[str, str], output: Any, seconds: float) -> int | None:
    """Run a command in a process group of its own; None if it had to be stopped."""
    try:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**environment, **(step.environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        print(f"{step.command[0]} cannot be started: {error}", file=output, flush=True)
        return 127
    try:
        return process.wait(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process group: an interrupt first, on which pytest writes what it has."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
        # Where the command itself has ended, the second signal is for children that it left.


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals that ask for an end into an exception."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the summary is written undisturbed


def tail(path: Path, lines: int = 15) -> str:
    """Return the end of a file."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def check(run: Run, names: list[str], seconds: float) -> bool:
    """Do the parts in order; return whether all have passed."""
    started = time.monotonic()
    todo = []
    for name in names:
        if run.passed(name):
            print(f"{name}: done before")
        else:
            todo.append(name)
    for name in todo:
        part = PARTS[name]
        print(f"{name}: to do, some {part.usual:.0f} s on an H100, {part.limit:.0f} s at most")
    factor = DRY_FACTOR if run.dry else 1.0
    good = True
    for at, name in enumerate(todo):
        begun = time.monotonic()
        allowed = allowance(todo, at, factor * seconds - (begun - started), factor)
        if allowed < 5:
            outcome = "not begun: no time left"
        else:
            run.record(name, "running")  # what is cut off from outside is found like this
            try:
                outcome = perform(run, name, allowed)
            except Interrupted as signal_name:
                run.record(name, f"interrupted by {signal_name}", time.monotonic() - begun)
                raise
        took = time.monotonic() - begun
        run.record(name, outcome, took)
        print(f"{name}: {outcome} ({took:.0f} s of {allowed:.0f})", flush=True)
        if outcome != "passed":
            good = False
            print(f"the end of {run.folder / PARTS[name].log}:\n{tail(run.folder / part.log)}")
            if name == "build":
                print("without a build there is nothing to check")
                break
    return good


def main(arguments: list[str] | None = None) -> int:
    """Do the parts that are asked for, then print the table."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all by default")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    parser.add_argument("--quick", action="store_true", help="a dry run of a minute")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"for everything (default: %(default)s); a dry run takes {DRY_FACTOR:.0f} times that",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in (*PARTS, "summary")]
    if unknown:
        parser.error(f"expected parts among {', '.join(PARTS)} or summary, got {unknown}")
    dry = options.dry_run or options.quick
    run = Run(Path(os.environ.get("OUT") or ROOT / "gpu-results"), dry, options.quick)
    names = [name for name in PARTS if name in options.parts or not options.parts]
    good = True
    try:
        with interruptible():
            good = check(run, names, options.seconds)
    except Interrupted as signal_name:
        print(f"ended by {signal_name}; what is measured is kept, run it again to go on")
        good = False
    finally:
        sound = gpu_summary.main(run.folder)
    return 0 if good and sound == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
