"""What is on the disk of a grid: finished runs, broken ones, the manifest, the lock."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from training.commands.ablate.plan import Plan, PlannedRun
from training.config import TrainConfig, flatten, to_dict
from training.config.load import load_config
from training.errors import ConfigError
from training.runs.comparable import UNRELATED
from training.runs.folder import write_json

Status = Literal["waiting", "running", "finished", "failed"]


@dataclass
class RunState:
    """How far a run is.

    Attributes:
        status: finished is with a summary.json.
        seconds: Wall time of the process; null if it did not run in this call.
        exit_status: Of the process; null if it did not run in this call.
    """

    status: Status = "waiting"
    seconds: float | None = None
    exit_status: int | None = None


def is_finished(plan: Plan, run: PlannedRun) -> bool:
    """Return whether a run is finished, with the configuration that is planned.

    Raises:
        ConfigError: If it is finished with another configuration; it is not overwritten.
    """
    folder = plan.run_root / run.name
    if not (folder / "summary.json").is_file():
        return False
    different = _differences(plan, run)
    if different:
        texts = [f"{name} was {old!r} and is {new!r} now" for name, (old, new) in different.items()]
        raise ConfigError(
            f"name: expected a grid folder whose finished runs have the planned configuration, but "
            f"in {folder} {'; '.join(texts)}. Choose another --name, or remove that run."
        )
    return True


def _settings(config: TrainConfig) -> dict[str, Any]:
    values = flatten(to_dict(config))
    return {name: v for name, v in values.items() if name.split(".")[0] not in UNRELATED}


def prepare(plan: Plan, run: PlannedRun) -> None:
    """Remove what a run of another configuration has left unfinished.

    What the planned run itself has left is continued by ``train``, with ``resume`` auto.
    """
    folder = plan.run_root / run.name
    if folder.exists():
        readable = (folder / "config.yaml").is_file()
        if not readable or _differences(plan, run):
            shutil.rmtree(folder)


def _differences(plan: Plan, run: PlannedRun) -> dict[str, tuple[Any, Any]]:
    """What a run folder's configuration has, and what is planned, where these differ."""
    found = _settings(load_config(plan.run_root / run.name / "config.yaml"))
    planned = _settings(run.config)
    return {
        name: (found.get(name), planned[name])
        for name in planned
        if found.get(name) != planned[name]
    }


@contextmanager
def locked(plan: Plan) -> Iterator[int]:
    """Hold the grid's folder; yield the lock's descriptor.

    Child processes that inherit the descriptor hold the lock as well: if this process is killed,
    the folder stays locked until its runs have ended.

    Raises:
        ConfigError: If another process works on the same grid.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(plan.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"name: expected a grid folder that nobody works on, but {plan.folder} is in use "
                "by another `ablate`, or by runs that one has started; wait for them, or choose "
                "another --name."
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def write_manifest(plan: Plan, states: Mapping[str, RunState]) -> None:
    """Write manifest.json: what the grid is, and how far each run is."""
    runs = [
        {
            "name": run.name,
            "dataset": run.config.dataset,
            "seed": run.config.seed,
            "arm": run.arm,
            "options": run.options,
            **vars(states[run.name]),
        }
        for run in plan.runs
    ]
    manifest = {"name": plan.name, "axes": plan.axes, "baseline": plan.baseline, "runs": runs}
    write_json(plan.folder / "manifest.json", manifest)
