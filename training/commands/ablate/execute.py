"""Running the runs of a grid: a process each, some of them at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from training.commands.ablate.plan import Plan, PlannedRun
from training.commands.ablate.state import RunState, prepare
from training.config import to_dict
from training.runs.folder import write_text

POLL_SECONDS = 0.05
_CHECKOUT = Path(__file__).parents[2]  # the folder to import `training` from


@dataclass
class _Process:
    run: PlannedRun
    handle: subprocess.Popen[bytes]
    started: float


def execute(
    plan: Plan,
    states: dict[str, RunState],
    jobs: int,
    lock: int,
    on_change: Callable[[], None],
) -> None:
    """Run all runs that wait, at most ``jobs`` at a time, in their order.

    A run that fails does not stop the others. If this function is left by an exception, an
    interrupt or SIGTERM (`signals.sigterm_as_exit`), the processes are ended before.

    Args:
        plan: The grid.
        states: State of every run, updated.
        jobs: >= 1.
        lock: Descriptor that the processes inherit, see `state.locked`.
        on_change: Called after every change of a state.
    """
    waiting = [run for run in plan.runs if states[run.name].status == "waiting"]
    processes: list[_Process] = []
    try:
        while waiting or processes:
            while waiting and len(processes) < jobs:
                run = waiting.pop(0)
                processes.append(_start(plan, run, lock))
                states[run.name].status = "running"
                on_change()
            time.sleep(POLL_SECONDS)
            ended = [p for p in processes if p.handle.poll() is not None]
            processes = [p for p in processes if p not in ended]
            for process in ended:
                states[process.run.name] = _outcome(plan, process)
                on_change()
    finally:
        _end(processes)


def _start(plan: Plan, run: PlannedRun, lock: int) -> _Process:
    prepare(plan, run)
    config, log = config_path(plan, run), log_path(plan, run)
    for path in (config, log, plan.run_root):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(config, yaml.safe_dump(to_dict(run.config), sort_keys=False))
    with log.open("wb") as file:
        handle = subprocess.Popen(
            [sys.executable, "-m", "training", "train", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(run.config.threads),
            pass_fds=(lock,),
        )
    return _Process(run, handle, time.perf_counter())


def _environment(threads: int | None) -> dict[str, str]:
    """The environment of a run: `training` of this checkout, and not more threads than set."""
    paths = [str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def _outcome(plan: Plan, process: _Process) -> RunState:
    code = process.handle.returncode
    finished = code == 0 and (plan.run_root / process.run.name / "summary.json").is_file()
    seconds = time.perf_counter() - process.started
    return RunState("finished" if finished else "failed", seconds, code)


def _end(processes: list[_Process]) -> None:
    """Ask the processes to end, and make them end after ten seconds."""
    for process in processes:
        process.handle.terminate()
    for process in processes:
        try:
            process.handle.wait(10)
        except subprocess.TimeoutExpired:
            process.handle.kill()
            process.handle.wait()


def config_path(plan: Plan, run: PlannedRun) -> Path:
    """The configuration file that a run is started with."""
    return plan.folder / "configs" / f"{run.name}.yaml"


def log_path(plan: Plan, run: PlannedRun) -> Path:
    """What a run has printed."""
    return plan.folder / "logs" / f"{run.name}.log"


def last_words(plan: Plan, run: PlannedRun) -> str:
    """The last line that a run has printed."""
    text = log_path(plan, run).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(it printed nothing)"
