"""Running the runs of a grid in this process: they take turns, step by step.

On a GPU each run has a stream, so that their steps overlap: a network of a few channels fills the
device neither in its small kernels nor between them. Every run takes the steps that it would take
alone; what they share is the data set, which nobody changes.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from training.commands.ablate.execute import log_path
from training.commands.ablate.plan import Plan, PlannedRun
from training.commands.ablate.state import RunState, prepare
from training.commands.train import train
from training.config import TrainConfig
from training.data import LongTailedDataset, build_dataset, effective_split_seed
from training.engine.distributed import Processes, training_device
from training.engine.signals import StopSignals
from training.errors import ConfigError, TrainingDiverged, TrainingStopped
from training.reproducibility import cpu_threads, deterministic_algorithms

_SHARED = ("device", "threads", "deterministic")
# Steps that a run may be ahead of the device: enough to keep it busy while this process evaluates
# or saves another run, few enough that the streams stay level.
_AHEAD = 8
_IDLE_SECONDS = 1e-4
_WIDTH = 120  # of a log


def check_together(plan: Plan) -> None:
    """Check that the runs can share a process.

    Raises:
        ConfigError: If they differ in what holds for the whole process, or may draw from its
            generators.
    """
    for name in _SHARED:
        values = {getattr(run.config, name) for run in plan.runs}
        if len(values) > 1:
            raise ConfigError(
                f"one_process: expected runs of one {name}, which a process has once, got "
                f"{', '.join(map(str, sorted(values, key=str)))}; leave --one-process out."
            )
    for model in sorted({run.config.model.name for run in plan.runs}):
        if ":" in model:
            raise ConfigError(
                "one_process: expected a network of this package, got "
                f"{model}, whose dropout would draw from generators that the runs share; leave "
                "--one-process out."
            )


def execute_together(
    plan: Plan, states: dict[str, RunState], jobs: int, on_change: Callable[[], None]
) -> None:
    """Run all runs that wait, at most ``jobs`` at a time; see `execute`.

    Args:
        plan: The grid, checked by `check_together`.
        states: State of every run, updated.
        jobs: >= 1.
        on_change: Called after every change of a state.

    Raises:
        TrainingStopped: If SIGTERM or SIGINT came; every run that had begun was saved.
    """
    # Streams beyond the number of connections wait for each other; read when CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    waiting = [run for run in plan.runs if states[run.name].status == "waiting"]
    if not waiting:
        return
    first = waiting[0].config
    turns: list[_Turn] = []
    with (
        cpu_threads(first.threads),
        deterministic_algorithms(first.deterministic),
        StopSignals() as signals,
    ):
        datasets = _Datasets(training_device(first))
        try:
            while turns or (waiting and not signals.received):
                while waiting and len(turns) < jobs and not signals.received:
                    turns.append(_Turn(plan, waiting.pop(0), datasets, signals))
                    states[turns[-1].run.name].status = "running"
                    on_change()
                ready = [turn for turn in turns if turn.ready()]
                if not ready:
                    time.sleep(_IDLE_SECONDS)
                for turn in ready:
                    state = turn.advance()
                    if state is not None:
                        states[turn.run.name] = state
                        turns.remove(turn)
                        on_change()
        finally:
            for turn in turns:
                turn.work.close()
    if signals.received:
        raise TrainingStopped(
            signals.received,
            f"stopped by signal {signals.received}; every run that had begun is saved in "
            f"{plan.run_root}, the same command continues.",
        )


class _Datasets:
    """The data sets of the runs, on their device; runs of the same data get the same one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._loaded: dict[str, LongTailedDataset] = {}

    def __call__(self, config: TrainConfig, split_seed: int) -> LongTailedDataset:
        seed = effective_split_seed(config, split_seed)
        key = repr((config.dataset, config.imbalance_factor, asdict(config.data), seed))
        if key not in self._loaded:
            dataset = build_dataset(config, split_seed).to(self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # other streams are to read it
            self._loaded[key] = dataset
        return self._loaded[key]


class _Turn:
    """A run that has begun, its stream, and how far the device is behind.

    Args:
        plan: The grid.
        run: The run.
        datasets: Loads its data.
        signals: Ask it to save and stop.
    """

    def __init__(
        self, plan: Plan, run: PlannedRun, datasets: _Datasets, signals: StopSignals
    ) -> None:
        prepare(plan, run)
        log = log_path(plan, run)
        for path in (log, plan.run_root):
            path.parent.mkdir(parents=True, exist_ok=True)
        device = datasets.device
        self.run = run
        self._log = log.open("w", encoding="utf-8")
        console = Console(file=self._log, width=_WIDTH)
        self.work: Generator[bool, None, dict[str, Any]] = train(
            run.config, device, Processes(), signals, console, datasets
        )
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps: deque[torch.cuda.Event] = deque()  # that the device may not have done
        self._waits = False
        self._started = time.perf_counter()

    def ready(self) -> bool:
        """Whether it can go on without holding up the others."""
        while self._steps and self._steps[0].query():
            self._steps.popleft()
        return not self._steps if self._waits else len(self._steps) < _AHEAD

    def advance(self) -> RunState | None:
        """Let it take a step; return its state if it has ended, or None."""
        try:
            with self._on_stream():
                self._waits = next(self.work)
                if self._stream is not None:
                    self._steps.append(self._stream.record_event())
        except StopIteration:
            return self._end("finished", 0)
        except TrainingStopped as stopped:
            print(stopped, file=self._log)
            return self._end("waiting", 128 + stopped.signal)
        except (ConfigError, TrainingDiverged) as error:
            print(f"error: {error}", file=self._log)
            return self._end("failed", 2 if isinstance(error, ConfigError) else 1)
        except Exception:
            traceback.print_exc(file=self._log)
            return self._end("failed", 1)
        return None

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _end(self, status: Any, code: int) -> RunState:
        self._log.close()
        return RunState(status, time.perf_counter() - self._started, code)
