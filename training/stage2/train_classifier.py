"""Training a classifier on the features of a frozen model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import OptimConfig, Stage2Config
from training.engine.optim import build_optimizer
from training.errors import TrainingDiverged


class FeatureBatches:
    """The batches of one epoch.

    Args:
        count: Number of batches.
        batches: Features float32 [B, D] and labels int64 [B], on the device, one pair a batch.
    """

    def __init__(self, count: int, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Remember the parts."""
        self._count = count
        self._batches = batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and labels."""
        return self._batches


class ScaledLogits(nn.Module):
    """Learnable weight scaling: scale_k * (w_k . z + b_k), where only the scales are learned.

    Args:
        linear: The classifier; it stays as it is.
        num_classes: K.
    """

    def __init__(self, linear: nn.Linear, num_classes: int) -> None:
        """Start with scales of one."""
        super().__init__()
        self.frozen: Sequence[nn.Linear] = (linear,)  # in a tuple: not a submodule, never learned
        self.scales = nn.Parameter(torch.ones(num_classes, device=linear.weight.device))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        with torch.no_grad():
            logits = self.frozen[0](features)  # [B, K]
        return logits * self.scales


@dataclass(frozen=True)
class ClassifierEpoch:
    """What an epoch of training saw; see `loop.EpochStatistics`."""

    loss: float
    accuracy: float
    learning_rate: float
    step: int
    images: int
    seconds: float


def train_classifier(
    config: Stage2Config,
    module: nn.Module,
    batches: Callable[[int], FeatureBatches],
) -> Iterator[ClassifierEpoch]:
    """Train by SGD on the cross-entropy, the rate a cosine over the epochs; yield each of them.

    Args:
        config: Rates and epochs, none of them null.
        module: Maps features [B, D] to logits [B, K].
        batches: The batches of an epoch, counted from 1.

    Raises:
        TrainingDiverged: If a loss is not finite.
    """
    assert config.epochs and config.lr and config.weight_decay is not None
    optim = OptimConfig(
        epochs=config.epochs,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        warmup_epochs=0,
        cosine_unit="epoch",
    )
    smoothing = config.label_smoothing if config.method == "los" else 0.0
    optimizer, schedule = build_optimizer(module, optim, len(batches(1)))
    step = 0
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        total, correct, count, rate = 0.0, 0, 0, 0.0
        for features, labels in batches(epoch):
            rate = schedule.set(step)
            logits = module(features)  # [B, K]
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if not math.isfinite(loss.item()):
                raise TrainingDiverged(
                    f"stage 2 loss: expected a finite number, got {loss.item()} in step {step} "
                    f"(epoch {epoch}); lower --lr."
                )
            total += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            count += len(labels)
        seconds = time.perf_counter() - started
        yield ClassifierEpoch(total / count, correct / count, rate, step, count, seconds)
