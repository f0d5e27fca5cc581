"""Continuing a run: its folder, its newest whole checkpoint, and everything that is in it.

A checkpoint of format 3 holds, beside "model" (the raw weights, see `OptimConfig.ema_decay`):
"ema", "optimizer", "scaler", "sampler" (the plan, and the place in it: see
`PlanCursor`), "history", "ranks" (per process: random states, the buffers and sums that differ
between processes), "config" and "world_size"; and for readers "epoch" (finished epochs), "step"
(steps done), "seeds", "metrics" (the last record) and "class_counts".
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from training.config import TrainConfig, flatten, to_dict
from training.config.runtime import RESUMABLE
from training.console import say
from training.engine.meter import Meter
from training.engine.trainer import Trainer
from training.errors import ConfigError
from training.reproducibility import random_states, set_random_states
from training.runs.checkpoint import CorruptCheckpoint, load_checkpoint
from training.runs.folder import RunFolder
from training.runs.history import History


def find_run(config: TrainConfig) -> tuple[RunFolder, Path | None] | None:
    """Return the run folder to continue, and the checkpoint if ``resume`` names one.

    Returns:
        None if a new run shall be started.

    Raises:
        ConfigError: If the path is no run, or the run was made with another configuration.
    """
    if config.resume == "none":
        return None
    if config.resume == "auto":
        folder = RunFolder(Path(config.output.root) / config.run_name())
        if not folder.config.is_file():
            return None
        check_same_config(config, _read_config(folder), str(folder.path))
        return folder, None
    path = Path(config.resume)
    folder = RunFolder(path.parent.parent if path.is_file() else path)
    if not folder.config.is_file():
        raise ConfigError(
            f"resume: expected auto, none, a run folder or a checkpoint in one, got {path}, which "
            "is none of these (a run folder has a config.yaml)."
        )
    check_same_config(config, _read_config(folder), str(folder.path))
    return folder, path if path.is_file() else None


def _read_config(folder: RunFolder) -> dict[str, Any]:
    try:
        content = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{folder.config}: expected YAML, got an error: {error}") from error
    return content if isinstance(content, dict) else {}


def check_same_config(config: TrainConfig, other: dict[str, Any], where: str) -> None:
    """Check that a run can be continued with a configuration.

    Raises:
        ConfigError: Naming the options that differ, but for those that change no result: where
            results go, when to save, and how to resume.
    """
    ours, theirs = (_flat(content) for content in (to_dict(config), other))
    missing = object()
    different = [
        f"{key} ({_show(theirs, key)} there, {_show(ours, key)} now)"
        for key in sorted({*ours, *theirs})
        if ours.get(key, missing) != theirs.get(key, missing)
    ]
    if different:
        raise ConfigError(
            f"resume: expected the configuration of {where}, got other values of "
            f"{', '.join(different)}; use the same ones, or another --output.name, or "
            "--resume none for a new run."
        )


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Return {"optim.lr": 0.1, …} without the options that may differ."""
    kept = {k: v for k, v in content.items() if k != "output" and k not in RESUMABLE}
    return flatten(kept)


def _show(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def load_newest(folder: RunFolder, named: Path | None, console: Console) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a run; None if it was ended before its first.

    A damaged last.pt is reported, moved aside as last-corrupt.pt, and last-previous.pt is used.

    Args:
        folder: The run folder.
        named: A checkpoint that was asked for by name; no other is used then.
        console: For the report.

    Raises:
        ConfigError: If there are checkpoints, but none is whole.
    """
    if named is not None:
        return load_checkpoint(named)
    found = [folder.checkpoint(name) for name in ("last", "last-previous")]
    found = [path for path in found if path.exists()]
    for path in found:
        try:
            return load_checkpoint(path)
        except CorruptCheckpoint as error:
            say(console, f"warning: {error}")
            if path == found[-1]:
                raise ConfigError(
                    f"{folder.path}: expected a whole checkpoint, got none; start again with "
                    "--resume none, or continue from another one with --resume PATH."
                ) from error
            path.replace(folder.checkpoint("last-corrupt"))
            say(console, f"continuing from {found[-1]}")
    return None


def training_state(
    trainer: Trainer, config: TrainConfig, history: History, folder: RunFolder
) -> dict[str, Any]:
    """Return all of a checkpoint but the model; every process calls this."""
    ranks = trainer.processes.gather(_rank_state(trainer))
    return {
        "ema": None if trainer.average is None else trainer.average.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "epoch": len(history.records),
        "step": trainer.step,
        "history": history.state(folder),
        "ranks": ranks,
        "sampler": trainer.cursor.state_dict(),
        "config": to_dict(config),
        "seeds": asdict(trainer.seeds),
        "world_size": trainer.processes.world_size,
        "metrics": history.records[-1] if history.records else None,
        "class_counts": trainer.dataset.class_counts,
    }


def _rank_state(trainer: Trainer) -> dict[str, Any]:
    """Return what differs between processes, on the CPU."""
    buffers: dict[str, Any] = {}
    if trainer.processes.world_size > 1:
        parameters = {name for name, _ in trainer.model.named_parameters()}
        state = trainer.model.state_dict()
        buffers = {name: value.cpu() for name, value in state.items() if name not in parameters}
    return {
        "random": random_states(trainer.device),
        "meter": trainer.meter.state(),
        "buffers": buffers,
    }


def restore_training(trainer: Trainer, state: dict[str, Any], console: Console) -> None:
    """Put everything but the history back as it was; every process calls this.

    Raises:
        ConfigError: If data or sampler give another plan than the run was made with.
    """
    processes = trainer.processes
    trainer.cursor.load_state_dict(state["sampler"])
    trainer.model.load_state_dict(state["model"])
    if trainer.average is not None:
        trainer.average.load_state_dict(state["ema"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.precision.scaler.load_state_dict(state["scaler"])
    ranks = state["ranks"]
    if len(ranks) == processes.world_size:
        own = ranks[processes.rank]
        trainer.model.load_state_dict({**state["model"], **own["buffers"]})
        trainer.meter = Meter.restore(own["meter"], trainer.device)
        set_random_states(own["random"], trainer.device)
        return
    say(
        console,
        f"note: {processes.world_size} processes continue a run of {len(ranks)}: the same "
        "batches, "
        "the same result up to rounding, other running statistics of layers that are not "
        "synchronised.",
    )
    if processes.first:  # the sums of all processes together
        trainer.meter = Meter.restore(ranks[0]["meter"], trainer.device)
        for other in ranks[1:]:
            trainer.meter.sums += other["meter"]["sums"].to(trainer.device)
