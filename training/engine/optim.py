"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn
from torch.optim import SGD, Optimizer

from training.config import OptimConfig
from training.config.optim import warmup_epochs


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


def multi_step_factor(
    step: int, steps_per_epoch: int, milestones: Sequence[int], factors: Sequence[float]
) -> float:
    """Product of the factors of the milestones (in epochs) that step ``step`` (from 0) has passed.

    Example:
        >>> [multi_step_factor(step, 2, [1, 2], [0.5, 0.1]) for step in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.05, 0.05]
    """
    passed = bisect_right(milestones, step // steps_per_epoch)
    return math.prod(factors[:passed], start=1.0)


def schedule_factor(step: int, config: OptimConfig, steps_per_epoch: int) -> float:
    """Fraction of the peak rate that step ``step`` (from 0) uses, as configured.

    Args:
        step: Number of the step in the run.
        config: See `OptimConfig`.
        steps_per_epoch: Batches of an epoch.

    Example:
        >>> config = OptimConfig(epochs=3, warmup_epochs=2, warmup_unit="epoch")
        >>> [round(schedule_factor(step, config, 2), 3) for step in range(6)]
        [0.5, 0.5, 1.0, 1.0, 1.0, 0.5]
    """
    warmup = warmup_epochs(config)
    warmup_steps = warmup * steps_per_epoch
    if step < warmup_steps and config.warmup_unit == "epoch":
        return (step // steps_per_epoch + 1) / warmup
    if step < warmup_steps or config.schedule == "cosine":
        return learning_rate_factor(step, config.epochs * steps_per_epoch, warmup_steps)
    return multi_step_factor(step, steps_per_epoch, config.milestones, config.factors)


class RateSchedule:
    """The learning rate as a function of the number of batches that are done.

    A step that fp16's gradient scaler skips counts like any other: warm-up, milestones and the end
    of the cosine stay at their epochs. The schedulers of torch count the calls of their own
    ``step``, have that count saved, and expect the optimiser's first step before their own, which
    a skipped first step is not. Here the rate is set before each step, and there is no state.

    Args:
        optimizer: Its groups' rates are the peaks.
        factor: Fraction of the peak rate that a step, counted from 0, uses.

    Example:
        >>> optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.5)
        >>> schedule = RateSchedule(optimizer, lambda step: 0.1**step)
        >>> schedule.set(2) == optimizer.param_groups[0]["lr"] == schedule.rate(2)
        True
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        """Remember the peaks."""
        self._optimizer = optimizer
        self._factor = factor
        self._peaks: list[float] = [group["lr"] for group in optimizer.param_groups]

    def rate(self, step: int) -> float:
        """Return the (first group's) rate of a step, counted from 0."""
        return self._peaks[0] * self._factor(step)

    def set(self, step: int) -> float:
        """Give every group its rate of the step that comes, counted from 0; return `rate`."""
        factor = self._factor(step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        return self.rate(step)


def build_optimizer(
    model: nn.Module, config: OptimConfig, steps_per_epoch: int
) -> tuple[Optimizer, RateSchedule]:
    """Return SGD with momentum and weight decay, and the schedule of its rate."""
    optimizer = SGD(
        parameter_groups(model, config),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    factor = partial(schedule_factor, config=config, steps_per_epoch=steps_per_epoch)
    return optimizer, RateSchedule(optimizer, factor)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Return the parameters with weight decay and, in a group of their own, those without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    plain = [] if config.decay_all else [p for p in parameters if p.ndim <= 1]
    excluded = {id(p) for p in plain}
    decayed = [p for p in parameters if id(p) not in excluded]
    groups = [(decayed, config.weight_decay), (plain, 0.0)]
    return [{"params": ps, "weight_decay": decay} for ps, decay in groups if ps]
