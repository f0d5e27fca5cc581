"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from functools import partial

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.config import OptimConfig


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Fraction of the peak rate that step ``step`` (from 0) uses: linear warm-up, then a cosine.

    The warm-up rises from 1 / warmup_steps to 1; the cosine falls from 1 towards 0, which it would
    reach at step total_steps.

    Example:
        >>> [round(learning_rate_factor(step, 6, 2), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    model: nn.Module, config: OptimConfig, steps_per_epoch: int
) -> tuple[Optimizer, LambdaLR]:
    """Return SGD with momentum and weight decay, and its schedule (a step per batch)."""
    optimizer = SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    factor = partial(
        learning_rate_factor,
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
    )
    return optimizer, LambdaLR(optimizer, factor)
