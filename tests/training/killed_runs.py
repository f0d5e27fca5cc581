"""Run, kill, resume: a process of its own for test_kill_and_resume.py, which forks every run.

Imports are done once; a run is a forked child of this process, so that a kill costs no start-up.
Usage: python killed_runs.py FOLDER KILLS SEED; prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.helpers.processes import die_with_parent
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import build_dataset
from training.reproducibility import deterministic_algorithms
from training.runs.checkpoint import load_checkpoint
from training.runs.folder import RunFolder

GOT_ON = 5  # kills, at least, before which a run has made steps
TIMES = ("train_seconds", "images_per_second")


def small_config(root: Path, name: str) -> TrainConfig:
    """A run of three epochs of ten steps that saves after every step and averages its weights."""
    config = TrainConfig(whitening="fused", checkpoint_every_steps=1, resume="auto")
    config.model.width = 4
    config.data.batch_size = 32
    config.optim.epochs, config.optim.warmup_epochs = 3, 1
    config.optim.ema_decay = 0.9
    config.output.root, config.output.name = str(root), name
    config.output.plots = False
    return config


def fork_run(config: TrainConfig) -> int:
    """Start a run in a forked child; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            run_train(config, Console(file=io.StringIO()))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    return child


def finish(config: TrainConfig) -> None:
    """Run to the end."""
    status = os.waitpid(fork_run(config), 0)[1]
    if status != 0:
        raise RuntimeError(f"a run that nobody killed ended with status {status}")


def ended(child: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(child: int) -> bool:
    """Kill a run; return False if it was done before."""
    os.kill(child, signal.SIGKILL)  # the child is not waited for yet, so its id is still its own
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if status != 0:
        raise RuntimeError(f"a run ended with status {status} before it was killed")
    return False


def killed_after(config: TrainConfig, delay: float, saves: int) -> bool:
    """Run, and kill after the first so many saves and a delay in seconds; False if it was done."""
    newest = RunFolder(Path(config.output.root) / config.output.name).checkpoint("last")
    child = fork_run(config)
    for _ in range(saves):
        before = stamp(newest)
        while stamp(newest) == before and not ended(child):
            time.sleep(0.002)
    time.sleep(delay)
    return kill(child)


def stamp(path: Path) -> tuple[int, int] | None:
    """What another save changes; None before the first."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def same(one: Any, other: Any) -> bool:
    """Compare nested containers bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def outcome(folder: RunFolder) -> dict[str, Any]:
    """What two runs that are the same have the same, bit by bit."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        state = load_checkpoint(folder.checkpoint(name))
        kept = ("model", "ema", "optimizer", "epoch", "step", "sampler", "ranks")
        found[name] = {key: state[key] for key in kept}
        for rank in found[name]["ranks"]:
            rank["meter"].pop("seconds")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    found["csv"] = [row.split(",")[:2] for row in folder.metrics_csv.read_text().splitlines()]
    summary = json.loads(folder.summary.read_text())
    found["summary"] = [summary["last"], summary["best"]]
    return found


def saved_steps(folder: RunFolder) -> int:
    """Steps in the newest checkpoint of a run; 0 if there is none."""
    for name in ("last", "last-previous"):
        if folder.checkpoint(name).exists():
            return int(load_checkpoint(folder.checkpoint(name))["step"])
    return 0


def uninterrupted(root: Path) -> tuple[dict[str, Any], float, float]:
    """Run without a kill; return the outcome, and when it saved first and when it ended, in s."""
    config = small_config(root, "reference")
    folder = RunFolder(root / "reference")
    # What a run imports late (two seconds of it for determinism) is there before the fork.
    build_dataset(config, 0)
    with deterministic_algorithms(True):
        pass
    started = time.perf_counter()
    child = fork_run(config)
    while not folder.checkpoint("last").exists() and not ended(child):
        time.sleep(0.002)
    first = time.perf_counter() - started
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the run that nobody killed failed")
    return outcome(folder), first, time.perf_counter() - started


def main(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Compare runs that were killed with one that was not.

    Every other kill comes at a moment around the time of the first save of an undisturbed run, so
    while a run starts or resumes, or some steps later, as fast as the machine is; the others wait
    for some saves, so they get on on every machine.
    """
    torch.set_num_threads(1)
    expected, first, length = uninterrupted(root)
    generator = random.Random(seed)
    done, in_a_save, got_on, per_run, equal = 0, 0, 0, [0], []
    before, tries = 0, 0
    while (left := done < kills or got_on < GOT_ON) or per_run[-1] > 0:
        config = small_config(root, f"killed-{len(per_run)}")
        folder = RunFolder(root / f"killed-{len(per_run)}")
        tries += 1
        saves = generator.randint(1, 4) if tries % 2 == 0 else 0
        delay = first * generator.uniform(0.3, 2.0) if saves == 0 else generator.uniform(0.0, 0.02)
        if not left:
            finish(config)
        elif killed_after(config, delay, saves):
            done += 1
            per_run[-1] += 1
            saved = folder.path / "checkpoints"
            in_a_save += bool(list(saved.glob(".*.tmp")) + list(saved.glob("last-new.pt")))
            steps = saved_steps(folder)
            got_on += steps > before
            before = steps
        if folder.summary.exists():  # done, or killed when nothing was left to do but to exit
            equal.append(same(outcome(folder), expected))
            per_run.append(0)
            before = 0
    return {
        "kills": done,
        "killed_in_a_save": in_a_save,
        "kills_that_got_on": got_on,
        "kills_per_run": per_run[:-1],
        "equal": equal,
        "steps": expected["last"]["step"],
        "seconds_to_the_first_save": first,
        "uninterrupted_seconds": length,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
