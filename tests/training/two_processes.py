"""What two processes do for test_distributed.py: ``python two_processes.py SCENE FOLDER RANK``.

The test calls the same scenes in its own process, where they run as a single one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch._dynamo.utils import counters

import training.commands.train
import training.engine.trainer
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import build_dataset
from training.data.base import LongTailedDataset
from training.engine.distributed import Processes, average_running_statistics, open_processes
from training.engine.trainer import build_trainer
from training.errors import ConfigError, TrainingStopped
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import ShotGroups
from training.models import build_model
from training.report.loggers import JsonLinesWriter, LoggedRun
from training.report.progress import PlainReporter
from training.reproducibility import resolve_seeds
from training.samplers import rank_rows

CPU = torch.device("cpu")


def small_config(folder: Path) -> TrainConfig:
    """A small model without whitening, uneven batches: 10 of 33 images and one of 12."""
    config = TrainConfig(whitening="none", sync_whitening=False)
    config.model.width = 4
    config.data.batch_size, config.data.drop_last = 33, False
    config.optim.epochs, config.optim.warmup_epochs, config.optim.lr = 2, 0, 0.01
    config.output.root, config.output.plots = str(folder / "runs"), False
    return config


def without_batchnorm(module: nn.Module) -> nn.Module:
    """Batch normalisation sees the rows of its own process only, so it is left out."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            without_batchnorm(child)
    return module


def double_dataset(config: TrainConfig) -> LongTailedDataset:
    """The data, normalised to float64."""
    dataset = build_dataset(config, resolve_seeds(config.seed, config.seeds).split)
    return replace(dataset, mean=dataset.mean.double(), std=dataset.std.double())


def train_steps(folder: Path, processes: Processes, whitening: str = "none") -> None:
    """Two epochs in float64; saves model, average and what the epochs saw.

    "recipe" is fused whitening with everything that is weighted or depends on a batch's kind.
    """
    config = small_config(folder)
    config.whitening = whitening
    if whitening == "recipe":
        config.whitening, config.whitening_weights, config.loss = "fused", "class-balanced", "cb"
        config.sampler, config.bet_period, config.statistics_batches = "b3rs", 2, "balanced"
    config.sync_whitening = None
    config.optim.clip_norm, config.optim.ema_decay = 0.5, 0.9
    torch.set_default_dtype(torch.float64)
    training.engine.trainer.build_model = lambda *arguments: without_batchnorm(
        build_model(*arguments)
    )
    try:
        seeds = resolve_seeds(0, config.seeds)
        trainer = build_trainer(config, double_dataset(config), seeds, CPU, processes)
        seen = [trainer.run_epoch() for _ in range(2)]
    finally:
        torch.set_default_dtype(torch.float32)
        training.engine.trainer.build_model = build_model
    own = rank_rows(processes.rank, processes.world_size)
    result = {
        "model": trainer.model.state_dict(),
        "ema": trainer.average.state_dict()["model"],
        "seen": [[s.loss, s.accuracy, s.images, s.learning_rate] for s in seen],
        "plan": trainer.cursor.plan,
        "shares": [len(b.positions[own]) / len(b.positions) for b in trainer.sampler.batches(1)],
    }
    torch.save(result, folder / f"steps-{whitening}-{processes.rank}.pt")


def compiled_steps(folder: Path, processes: Processes) -> None:
    """An epoch with synchronised fused whitening, as it is and compiled.

    Everything but the last stage, which would build C++ for minutes: dynamo splits the graph where
    DDP reduces a bucket, autograd's graph is traced ahead, and is run by torch.
    """
    compile_ = torch.compile
    torch.compile = partial(compile_, backend="aot_eager")
    result = {}
    try:
        for name in ("plain", "compiled"):
            config = small_config(folder)
            config.whitening, config.sync_whitening = "fused", None
            config.model.width = 16  # see training/engine/memory_format.py
            config.data.drop_last = True  # one shape, one compilation
            config.compile = name == "compiled"
            seeds = resolve_seeds(0, config.seeds)
            trainer = build_trainer(
                config, build_dataset(config, seeds.split), seeds, CPU, processes
            )
            counters.clear()
            losses: list[float] = []
            trainer.run_epoch(losses.append)
            result[name] = {
                "losses": losses,
                "model": trainer.model.state_dict(),
                "graphs": counters["stats"]["unique_graphs"],
            }
    finally:
        torch.compile = compile_
    torch.save(result, folder / f"compiled-{processes.rank}.pt")


def evaluate_split(folder: Path, processes: Processes) -> None:
    """Evaluate on 101 images, which two processes cannot share evenly, and on a single one."""
    config = small_config(folder)
    dataset = build_dataset(config, 0)
    seeds = resolve_seeds(0, config.seeds)
    trainer = build_trainer(config, dataset, seeds, CPU, processes)
    groups = ShotGroups.from_counts(dataset.class_counts.tolist())
    results = {}
    for size in (101, 1):
        test = dataset.test
        rows = torch.arange(3, 3 * size + 3, 3)  # of several classes
        split = replace(test, images=test.images[rows], labels=test.labels[rows])
        result = evaluate(trainer.model, dataset, split, groups, processes)
        results[size] = {**result.as_dict(), "confusion": result.confusion}
    torch.save(results, folder / f"evaluation-{processes.rank}.pt")


class Unreachable(JsonLinesWriter):
    """A logger that cannot be opened; says where that was tried."""

    def __init__(self, run: LoggedRun, folder: str) -> None:
        (Path(folder) / f"opened-{dist.get_rank()}").touch()
        raise OSError("no such server")


def whole_runs(folder: Path, processes: Processes) -> None:
    """A run, and the same one that is stopped by a signal to one process and continued."""
    console = Console(file=io.StringIO())
    config = small_config(folder)
    config.whitening, config.resume = "eager", "auto"  # batch normalisation and whitening: local
    config.output.name = "whole"
    run_train(config, console)
    config.output.name = "stopped"
    said = PlainReporter.step
    count = 0

    def signal_last_rank(self: PlainReporter, loss: float) -> None:
        nonlocal count
        count += 1
        if count == 14 and processes.rank == processes.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    PlainReporter.step = signal_last_rank
    try:
        run_train(config, console)
    except TrainingStopped as stopped:
        (folder / f"stopped-{processes.rank}").write_text(f"{stopped.signal} {count}")
        if processes.first:
            shutil.copytree(folder / "runs/stopped", folder / "left-by-two")
    processes.maximum(0)  # the copy is made
    PlainReporter.step = said
    run_train(config, console)
    config.resume = str(folder / "nothing")
    try:
        run_train(config, console)
    except ConfigError as error:
        (folder / f"refused-{processes.rank}").write_text(str(error))
    config.resume, config.output.name = "none", "unlogged"
    config.output.loggers = [{f"{Unreachable.__module__}:Unreachable": {"folder": str(folder)}}]
    try:
        run_train(config, console)
    except ConfigError as error:
        (folder / f"unlogged-{processes.rank}").write_text(str(error))


def running_statistics(folder: Path, processes: Processes) -> None:
    """Statistics that differ become their mean; weights and counts stay."""
    layer = nn.BatchNorm1d(2)
    nn.init.constant_(layer.running_mean, 1.0 + 2 * processes.rank)
    nn.init.constant_(layer.weight, 5.0 + processes.rank)
    average_running_statistics(layer, processes)
    result = [layer.running_mean.tolist(), layer.weight.tolist(), int(layer.num_batches_tracked)]
    (folder / f"statistics-{processes.rank}.json").write_text(json.dumps(result))


def fail_on_one(folder: Path, processes: Processes) -> None:
    """The second process cannot read its data; the first waits for it in vain."""
    if processes.rank == 1:

        def broken(*arguments: object) -> LongTailedDataset:
            raise ConfigError("data: expected a file, got none on this machine.")

        training.commands.train.build_dataset = broken
    run_train(small_config(folder), Console(file=io.StringIO()))


def all_scenes(folder: Path, processes: Processes) -> None:
    """Everything that ends well, so that two processes start once for all of it."""
    running_statistics(folder, processes)
    train_steps(folder, processes)
    train_steps(folder, processes, "fused")
    train_steps(folder, processes, "recipe")
    evaluate_split(folder, processes)
    whole_runs(folder, processes)


if __name__ == "__main__":
    scene, where, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{where}/{scene}.rendezvous", rank=number, world_size=2)
    with open_processes(CPU) as both:
        globals()[scene](where, both)
    dist.destroy_process_group()
    # Not through the interpreter's end: one of gloo's threads may still free a tensor then, and
    # aborts the process (https://github.com/pytorch/pytorch/issues/190489).
    sys.stderr.flush()
    os._exit(0)
