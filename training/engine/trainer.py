"""The trainer: what changes during training, and the training epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.config import TrainConfig
from training.data import LongTailedDataset, build_feed
from training.data.feed import Examples, TrainFeed
from training.engine.batch_rules import BatchRules
from training.engine.distributed import Processes, loss_weight, synchronise_layers, wrap_model
from training.engine.graphs import CudaCapture, StepGraphs, check_cuda_graph
from training.engine.memory_format import check_channels_last, to_channels_last
from training.engine.meter import Meter, is_time_to_check, reported_loss
from training.engine.mixup import Mixed, Mixup
from training.engine.optim import (
    Precision,
    RateSchedule,
    WeightAverage,
    at_least_float32,
    build_optimizer,
)
from training.losses import ClassificationLoss, build_loss
from training.models import WhitenedClassifier, build_model
from training.reproducibility import Seeds
from training.samplers import BatchSampler, PlanCursor, build_sampler, check_world_size
from training.samplers.base import BatchKind


@dataclass(frozen=True)
class EpochStatistics:
    """What one epoch of training saw, over all processes.

    Attributes:
        loss: Mean training loss (of the configured loss) over images.
        accuracy: Fraction of images classified correctly by the unadjusted logits, in training
            mode, while the weights changed.
        learning_rate: Rate of the epoch's last step.
        images: Number of images.
        seconds: Wall time of the steps.
    """

    loss: float
    accuracy: float
    learning_rate: float
    images: int
    seconds: float


@dataclass
class Trainer:
    """Everything that changes during training, and what it is trained on.

    Attributes:
        model: The plain model: what is evaluated and saved.
        forward: What the training step calls; the model, wrapped for several processes and
            compiled if so configured.
        average: Moving average of the model, or None.
        mixup: Mixes the images of a batch, or None.
        cursor: The next batch of the plan.
        meter: Sums over the batches of the current epoch that are done.
        graphs: Replay `_capturable_step`; None if steps are taken one by one.
    """

    model: WhitenedClassifier
    loss: ClassificationLoss
    optimizer: Optimizer
    schedule: RateSchedule
    cursor: PlanCursor
    dataset: LongTailedDataset
    seeds: Seeds
    feed: TrainFeed
    rules: BatchRules
    forward: Callable[..., Tensor]
    precision: Precision
    meter: Meter
    device: torch.device
    processes: Processes = field(default_factory=Processes)
    average: WeightAverage | None = None
    mixup: Mixup | None = None
    clip_norm: float | None = None
    channels_last: bool = False
    graphs: StepGraphs | None = None

    @property
    def sampler(self) -> BatchSampler:
        """The plan of batches."""
        return self.cursor.sampler

    @property
    def step(self) -> int:
        """Steps done in the run: its batches, those whose update fp16's scaler skipped included."""
        return self.cursor.steps

    def run_epoch(
        self,
        on_step: Callable[[float], None] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> EpochStatistics:
        """Train as `epoch` does, at one go."""
        return complete(self.epoch(on_step, after_step))

    def epoch(
        self,
        on_step: Callable[[float], None] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> Generator[bool, None, EpochStatistics]:
        """Train on the batches of the cursor's epoch that are not done yet; go to the next epoch.

        Args:
            on_step: Called with the loss of each step (NaN on a GPU, which is not waited for).
            after_step: Called between steps, for saving; its time is not counted.

        Yields:
            Between steps: whether what comes next waits for the device.

        Raises:
            TrainingDiverged: If a loss is not finite.
        """
        epoch = self.cursor.epoch
        self.model.train()
        self.loss.set_epoch(epoch)
        self.meter.step.fill_(self.step)
        started = time.perf_counter()
        for examples in self.feed.examples(self.cursor.batches(), epoch):
            loss = self._counted_step(examples)
            self.cursor.advance(examples.batch)
            checks = is_time_to_check(self.step, self.device)
            yield checks
            if checks:
                self.meter.check(epoch, self.processes)
            if on_step is not None:
                on_step(reported_loss(loss))
            if after_step is not None:
                self.meter.seconds += time.perf_counter() - started
                after_step()
                started = time.perf_counter()
        yield True
        self.meter.check(epoch, self.processes)
        mean_loss, accuracy, images = self.meter.totals(self.processes)
        seconds = self.meter.seconds + time.perf_counter() - started
        self.meter.reset()
        self.cursor.next_epoch()
        return EpochStatistics(mean_loss, accuracy, self.last_rate(), images, seconds)

    def _counted_step(self, examples: Examples) -> Tensor:
        """Take a step, replayed if so configured, and note it in the meter; return the loss []."""
        if self.graphs is not None:
            self.schedule.set(self.step)
            return self.graphs(self._capturable_step, examples, self.loss.phase)
        loss, logits = self.training_step(examples)
        self.meter.add(loss, logits, examples.labels)
        return loss

    def _capturable_step(self, examples: Examples) -> Tensor:
        """The part of a step that is the same each time but for numbers on the device."""
        loss, logits = self._update(examples)
        self.meter.add(loss, logits, examples.labels)
        return loss

    def training_step(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """One step of SGD on this process' examples.

        Args:
            examples: ``batch`` says of which kind the batch is, and how many rows all processes
                have.

        Returns:
            Mean loss [] over this process' rows, and logits [B, K], both detached.
        """
        self.schedule.set(self.step)
        return self._update(examples)

    def _update(self, examples: Examples) -> tuple[Tensor, Tensor]:
        images, labels = examples.images, examples.labels
        mixed = None
        if self.mixup is not None:
            mixed = self.mixup(images, self.cursor.epoch, examples.batch.index)
            images = mixed.images
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        kind, processes = examples.batch.kind, self.processes
        arguments = self.rules.arguments(
            labels, kind, processes.sum_ if processes.world_size > 1 else None
        )
        with self.precision.autocast():
            logits = at_least_float32(self.forward(images, **arguments))  # [B, K]
        loss = self._loss(logits, labels, kind, mixed)  # []
        scaler = self.precision.scaler
        scaler.scale(loss * loss_weight(self.loss, examples, processes)).backward()
        if self.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        return loss.detach(), logits.detach()

    def _loss(self, logits: Tensor, labels: Tensor, kind: BatchKind, mixed: Mixed | None) -> Tensor:
        loss: Tensor = self.loss(logits, labels, kind)  # []
        if mixed is None:
            return loss
        return torch.lerp(self.loss(logits, labels[mixed.partners], kind), loss, mixed.share)

    def last_rate(self) -> float:
        """Return the learning rate of the last step."""
        return self.schedule.rate(self.step - 1)


T = TypeVar("T")


def complete(work: Generator[bool, None, T]) -> T:
    """Go through a generator; return what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def build_trainer(
    config: TrainConfig,
    dataset: LongTailedDataset,
    seeds: Seeds,
    device: torch.device,
    processes: Processes | None = None,
) -> Trainer:
    """Put model, loss, optimiser and sampler together on a device.

    Raises:
        ConfigError: If the batches do not fit the data or the processes, or the model cannot be
            trained in the channels-last format, or captured, on this device.
    """
    processes = processes or Processes()
    if config.cuda_graph:
        check_cuda_graph(device, processes)
    labels = dataset.train.labels
    sampler = build_sampler(config, labels, seeds.sampler, dataset.num_classes)
    check_world_size(sampler, processes.world_size)
    model = build_model(config, dataset.channels, dataset.num_classes, seeds.initialisation)
    model = synchronise_layers(model, processes, config.sync_bn, config.sync_whitening)
    model = model.to(device)
    if config.compile:
        check_channels_last(model, device, "compile")
    if config.channels_last:
        check_channels_last(model, device, "channels_last")
        model = to_channels_last(model)
    forward = wrap_model(model, processes)
    decay = config.optim.ema_decay
    optimizer, schedule = build_optimizer(model, config.optim, len(sampler), config.cuda_graph)
    dataset = dataset.to(device)
    return Trainer(
        model=model,
        loss=build_loss(config, dataset.class_counts, sampler).to(device),
        optimizer=optimizer,
        schedule=schedule,
        cursor=PlanCursor(sampler, labels),
        dataset=dataset,
        seeds=seeds,
        rules=BatchRules.from_config(config, dataset.class_counts.to(device)),
        feed=build_feed(dataset, seeds.augmentation, processes.rank, processes.world_size),
        forward=torch.compile(forward) if config.compile else forward,
        precision=Precision(config.precision, device),
        meter=Meter.on(device),
        device=device,
        processes=processes,
        average=None if decay is None else WeightAverage(model, decay),
        mixup=Mixup(config.mixup, seeds.augmentation) if config.mixup else None,
        clip_norm=config.optim.clip_norm,
        channels_last=config.channels_last,
        graphs=StepGraphs(CudaCapture()) if config.cuda_graph else None,
    )
