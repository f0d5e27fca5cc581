"""One training run from the configuration to the report: the command ``train``."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from rich.console import Console

from training.config import TrainConfig, to_dict, validate
from training.config.optim import warmup_epochs
from training.console import say
from training.data import LongTailedDataset, build_dataset
from training.engine.distributed import (
    Processes,
    average_running_statistics,
    open_processes,
    training_device,
)
from training.engine.graphs import own_stream
from training.engine.signals import StopSignals
from training.engine.trainer import Trainer, build_trainer, complete
from training.errors import TrainingStopped
from training.evaluation.evaluate import epoch_record, evaluate_epoch
from training.evaluation.metrics import ShotGroups
from training.models import check_groups
from training.report.loggers import EpochLog, check_loggers, open_log
from training.report.progress import Reporter, build_reporter
from training.report.summary import finish_run
from training.reproducibility import (
    Seeds,
    cpu_threads,
    deterministic_algorithms,
    resolve_seeds,
    seeded_globals,
)
from training.runs.checkpoint import save_checkpoint, save_last
from training.runs.folder import (
    RunFolder,
    create_run_folder,
    describe_environment,
    remove_leftovers,
    write_json,
)
from training.runs.history import History, append_record, restore_history, truncate_metrics
from training.runs.resume import find_run, load_newest, restore_training, training_state


def run_train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train, evaluate, write the run folder, and return the summary.

    Under torchrun every process calls this; the first one writes and prints. With ``dry_run`` the
    configuration is checked, printed and returned.

    Args:
        config: The configuration.
        console: Where progress and the closing table are printed; standard output by default.

    Returns:
        The content of summary.json, on every process.

    Raises:
        ConfigError: If the configuration makes no sense, or does not fit the run to continue.
        TrainingDiverged: If the loss is not finite.
        TrainingStopped: If SIGTERM or SIGINT came; the run was saved after the step.
    """
    console = console or Console()
    validate(config)
    check_groups(config)
    check_loggers(config.output.loggers)
    if config.dry_run:
        dataset = build_dataset(config, resolve_seeds(config.seed, config.seeds).split, False)
        for note in _notes(config, dataset):
            say(console, f"# {note}")
        say(console, _as_yaml(config), end="")
        return to_dict(config)
    device = training_device(config)
    seeds = resolve_seeds(config.seed, config.seeds)
    with (
        open_processes(device) as processes,
        cpu_threads(config.threads),
        deterministic_algorithms(config.deterministic),
        seeded_globals(device, seeds.augmentation, processes.rank),
        StopSignals() as signals,
        own_stream(device) if config.cuda_graph else nullcontext(),
    ):
        console = console if processes.first else Console(quiet=True)
        return complete(train(config, device, processes, signals, console))


LoadDataset = Callable[[TrainConfig, int], LongTailedDataset]


def train(
    config: TrainConfig,
    device: torch.device,
    processes: Processes,
    signals: StopSignals,
    console: Console,
    load: LoadDataset | None = None,
) -> Generator[bool, None, dict[str, Any]]:
    """Start or continue a run, train and finish it, in steps between which others may work.

    Threads, determinism, the seeds of global generators and the stream are the caller's.

    Args:
        config: Checked.
        device: That trains.
        processes: That share the run.
        signals: Is asked between steps whether to stop.
        console: For progress and the closing table.
        load: Returns the data set for the resolved seed of the split; null is `build_dataset`.

    Yields:
        As `Trainer.epoch`.

    Returns:
        The content of summary.json.
    """
    started = time.perf_counter()
    seeds = resolve_seeds(config.seed, config.seeds)
    run = _open_run(config, seeds, device, processes, console, load or build_dataset)
    reporter = build_reporter(console, config.optim.epochs, len(run.trainer.sampler))
    with (
        closing(run.trainer.feed),
        closing(open_log(config, run.folder, run.trainer)) as log,
        closing(reporter),
    ):
        reporter.start(run.trainer.step)
        yield from _train(run, reporter, log, signals)
    return finish_run(config, run.trainer, run.history, run.folder, console, started)


@dataclass
class Run:
    """A run that is new, or as it was when it was saved."""

    config: TrainConfig
    trainer: Trainer
    history: History
    folder: RunFolder

    def save(self, best: bool = False) -> None:
        """Write the checkpoint "last", and before it "best"; every process calls this."""
        trainer = self.trainer
        state = training_state(trainer, self.config, self.history, self.folder)
        if trainer.processes.first:
            # In this order: a "last" that knows a best epoch finds its "best" in place.
            if best:
                save_checkpoint(self.folder.checkpoint("best"), trainer.model, **state)
            save_last(self.folder, trainer.model, **state)


def _open_run(
    config: TrainConfig,
    seeds: Seeds,
    device: torch.device,
    processes: Processes,
    console: Console,
    load: LoadDataset,
) -> Run:
    """Load the data, build the trainer, make the run folder or continue what is in it."""
    found = processes.on_first(lambda: find_run(config))  # before the data is loaded
    dataset = load(config, seeds.split)
    for note in _notes(config, dataset):
        say(console, note)
    trainer = build_trainer(config, dataset, seeds, device, processes)
    if found is None:
        files = {"config.yaml": _as_yaml(config)}
        folder = processes.on_first(
            lambda: create_run_folder(config.run_name(), config.output, files)
        )
        state = None
    else:
        folder, named = found
        state = processes.on_first(lambda: load_newest(folder, named, console))
    run = Run(config, trainer, History(), folder)
    if state is not None:
        restore_training(trainer, state, console)
        run.history = processes.on_first(lambda: restore_history(state["history"], folder))
        where = f"{folder.path}, {state['epoch']} epochs and {trainer.cursor.index} batches done"
        say(console, f"continuing {where}")
    if processes.first:
        remove_leftovers(folder)
        truncate_metrics(folder, state and state["history"], run.history)
        write_json(folder.environment, describe_environment(device))
    return run


def _notes(config: TrainConfig, dataset: LongTailedDataset) -> list[str]:
    """What is not as the configuration alone would have it, a sentence each."""
    notes = [dataset.cut] if dataset.cut else []
    epochs, given = config.optim.epochs, config.optim.warmup_epochs
    warmup = warmup_epochs(config.optim)
    if warmup != given:
        notes.append(f"a run of {epochs} epochs has no warm-up of {given}: it takes {warmup}")
    late = [str(epoch) for epoch in config.optim.milestones if epoch >= epochs]
    if late:
        notes.append(f"a run of {epochs} epochs ends before its rate changes at {', '.join(late)}")
    return notes


def _as_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _train(
    run: Run, reporter: Reporter, log: EpochLog, signals: StopSignals
) -> Generator[bool, None, None]:
    """Run the epochs that are left; save after epochs and steps as configured."""
    config, trainer, history = run.config, run.trainer, run.history
    groups = ShotGroups.from_counts(trainer.dataset.class_counts.tolist())
    started = time.perf_counter() - history.wall_seconds

    def after_step() -> None:
        stop = signals.agreed(trainer.processes, trainer.step, trainer.device.type)
        every = config.checkpoint_every_steps
        if stop or (every is not None and trainer.step % every == 0):
            trainer.meter.check(trainer.cursor.epoch, trainer.processes)
            history.wall_seconds = time.perf_counter() - started
            run.save()
        if stop:
            raise TrainingStopped(
                stop,
                f"stopped by signal {stop} after step {trainer.step}; "
                f"everything is in {run.folder.checkpoint('last')}, --resume auto continues.",
            )

    while (epoch := trainer.cursor.epoch) <= config.optim.epochs:
        statistics = yield from trainer.epoch(reporter.step, after_step)
        average_running_statistics(trainer.model, trainer.processes)
        results = evaluate_epoch(config, trainer, groups, epoch)
        record = epoch_record(epoch, trainer.step, statistics, results)
        is_best = history.add(record, statistics, results.confusions)
        history.wall_seconds = time.perf_counter() - started
        if trainer.processes.first:
            append_record(run.folder, history)
        log.add(record)  # before it is saved: what a checkpoint knows was logged
        if is_best or epoch % config.checkpoint_every == 0 or epoch == config.optim.epochs:
            run.save(best=is_best)
        reporter.epoch(record)
