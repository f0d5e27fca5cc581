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
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import build_helpers
import gpu_summary
from gpu_parts import GRACE, IS_BUILT, PARTS, ROOT, Setting, Step

extension = build_helpers.extension()
SECONDS = 570.0  # of ten minutes: what ends by itself is better than what is cut off
DRY_FACTOR = 6.0  # one core, and Triton's interpreter, in place of a GPU
SOURCES = ("csrc", "fastwhiten", "benchmarks", "tests", "tools", "training", "setup.py")


class Interrupted(Exception):
    """Somebody asked this program to end."""


class Run:
    """One run of the program: options, the folder, and what is known of every part."""

    def __init__(self, folder: Path, dry: bool, quick: bool) -> None:
        """Read what earlier runs left in the folder."""
        self.folder, self.dry, self.sources = folder, dry, fingerprint()
        self.setting = Setting(folder, self.sources, dry, quick)
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
    endings = (*extension.SUFFIXES, ".py", ".sh")
    return str(extension.fingerprint(ROOT, extension.files(ROOT, SOURCES, endings)))


def allowance(names: list[str], at: int, left: float, factor: float = 1.0) -> float:
    """Return the seconds for part ``at`` of those to do: its limit, or what later ones leave."""
    later = sum(PARTS[name].least for name in names[at + 1 :])
    return min(factor * PARTS[names[at]].limit, left - factor * later)


def perform(run: Run, name: str, seconds: float) -> str:
    """Do a part; return "passed", or how it ended."""
    log, until = run.folder / PARTS[name].log, time.monotonic() + seconds
    shared = sum(part.log == PARTS[name].log for part in PARTS.values()) > 1
    with log.open("a" if shared else "w", encoding="utf-8") as output:
        for step in PARTS[name].steps(run.setting, seconds):
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
        usual, limit = PARTS[name].usual, PARTS[name].limit
        print(f"{name}: to do, some {usual:.0f} s on an H100, {limit:.0f} s at most")
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
            log = run.folder / PARTS[name].log
            print(f"the end of {log}:\n{tail(log)}")
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
