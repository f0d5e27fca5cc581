"""The training step and the training epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.batch_rules import BatchRules
from training.config import TrainConfig
from training.data.base import LongTailedDataset
from training.data.feed import Examples, ResidentFeed, TrainFeed
from training.errors import TrainingDiverged
from training.losses import ClassificationLoss, build_loss
from training.models import WhitenedClassifier, build_model
from training.optim import build_optimizer
from training.reproducibility import Seeds
from training.samplers import BatchSampler, build_sampler


@dataclass(frozen=True)
class EpochStatistics:
    """What one epoch of training saw.

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
    """Everything that changes during training, and what it is trained on."""

    model: WhitenedClassifier
    loss: ClassificationLoss
    optimizer: Optimizer
    schedule: LambdaLR
    sampler: BatchSampler
    dataset: LongTailedDataset
    seeds: Seeds
    feed: TrainFeed
    rules: BatchRules
    step: int = 0

    def run_epoch(
        self, epoch: int, on_step: Callable[[float], None] | None = None
    ) -> EpochStatistics:
        """Train on every batch of an epoch (counted from 1).

        Args:
            epoch: Decides the order of the images and their augmentation, with the seeds.
            on_step: Called with the loss of each step.

        Raises:
            TrainingDiverged: If a loss is not finite.
        """
        started = time.perf_counter()
        self.model.train()
        self.loss.set_epoch(epoch)
        total, correct, count, rate = 0.0, 0, 0, 0.0
        for examples in self.feed.examples(self.sampler.batches(epoch), epoch):
            labels = examples.labels
            rate = self.schedule.get_last_lr()[0]
            loss, logits = self.training_step(examples)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"training loss: expected a finite number, got {value} in step {self.step} "
                    f"(epoch {epoch}); lower --optim.lr or raise --whitening_options.eps."
                )
            total += value * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            count += len(labels)
            if on_step is not None:
                on_step(value)
        seconds = time.perf_counter() - started
        return EpochStatistics(total / count, correct / count, rate, count, seconds)

    def training_step(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """One step of SGD on a batch -> loss [], logits [B, K], detached."""
        labels, kind = examples.labels, examples.batch.kind
        logits = self.model(examples.images, **self.rules.arguments(labels, kind))
        loss = self.loss(logits, labels, kind)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.detach(), logits.detach()


def build_trainer(
    config: TrainConfig, dataset: LongTailedDataset, seeds: Seeds, device: torch.device
) -> Trainer:
    """Put model, loss, optimiser and sampler together on a device.

    Raises:
        ConfigError: If the batches do not fit the data.
    """
    labels = dataset.train.labels
    sampler = build_sampler(config, labels, seeds.sampler, dataset.num_classes)
    channels = dataset.train.images.shape[1]
    model = build_model(config, channels, dataset.num_classes, seeds.initialisation).to(device)
    loss = build_loss(config, dataset.class_counts, sampler).to(device)
    optimizer, schedule = build_optimizer(model, config.optim, len(sampler))
    dataset = dataset.to(device)
    return Trainer(
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        sampler=sampler,
        dataset=dataset,
        seeds=seeds,
        feed=ResidentFeed(dataset, config.data.shift, seeds.augmentation),
        rules=BatchRules.from_config(config, dataset.class_counts.to(device)),
    )
