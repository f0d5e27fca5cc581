"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
        >>> config = OptimConfig(epochs=3, warmup_epochs=0, cosine_unit="epoch")
        >>> [round(schedule_factor(step, config, 2), 3) for step in range(6)]
        [1.0, 1.0, 0.75, 0.75, 0.25, 0.25]
    """
    warmup = warmup_epochs(config)
    warmup_steps = warmup * steps_per_epoch
    if step < warmup_steps and config.warmup_unit == "epoch":
        return (step // steps_per_epoch + 1) / warmup
    if step < warmup_steps or config.schedule == "cosine":
        if step >= warmup_steps and config.cosine_unit == "epoch":
            step -= step % steps_per_epoch
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
        device: Where the rates lie as tensors, which a CUDA graph reads; null leaves them numbers.

    Example:
        >>> optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.5)
        >>> schedule = RateSchedule(optimizer, lambda step: 0.1**step)
        >>> schedule.set(2) == optimizer.param_groups[0]["lr"] == schedule.rate(2)
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        device: torch.device | None = None,
    ) -> None:
        """Remember the peaks."""
        self._optimizer = optimizer
        self._factor = factor
        self._peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
        # Kept here as well: loading a state puts others into the groups.
        self._tensors: list[Tensor] = []
        if device is not None:
            self._tensors = [torch.tensor(peak, device=device) for peak in self._peaks]

    def rate(self, step: int) -> float:
        """Return the (first group's) rate of a step, counted from 0."""
        return self._peaks[0] * self._factor(step)

    def set(self, step: int) -> float:
        """Give every group its rate of the step that comes, counted from 0; return `rate`."""
        factor = self._factor(step)
        rates: list[Any] = [peak * factor for peak in self._peaks]
        if self._tensors:
            rates = [tensor.fill_(r) for tensor, r in zip(self._tensors, rates, strict=True)]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return self.rate(step)


def build_optimizer(
    model: nn.Module, config: OptimConfig, steps_per_epoch: int, cuda_graph: bool = False
) -> tuple[Optimizer, RateSchedule]:
    """Return SGD with momentum and weight decay, and the schedule of its rate.

    Args:
        model: On the device that trains.
        config: See `OptimConfig`.
        steps_per_epoch: Batches of an epoch.
        cuda_graph: Whether the step is captured: the rate is then a tensor.
    """
    optimizer = SGD(
        parameter_groups(model, config),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True if cuda_graph else None,  # the other forms read the tensor's value
    )
    factor = partial(schedule_factor, config=config, steps_per_epoch=steps_per_epoch)
    device = next(model.parameters()).device
    return optimizer, RateSchedule(optimizer, factor, device if cuda_graph else None)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Return the parameters with weight decay and, in a group of their own, those without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    plain = [] if config.decay_all else [p for p in parameters if p.ndim <= 1]
    excluded = {id(p) for p in plain}
    decayed = [p for p in parameters if id(p) not in excluded]
    groups = [(decayed, config.weight_decay), (plain, 0.0)]
    return [{"params": ps, "weight_decay": decay} for ps, decay in groups if ps]


class WeightAverage:
    """The average that `torch.optim.swa_utils.get_ema_multi_avg_fn` keeps, of the whole state.

    `torch.optim.swa_utils.AveragedModel` pairs the buffers of two models by position. A whitening
    layer that has been evaluated holds one more buffer (its cached matrix, which is no part of the
    state) than one that has not, so here entries are paired by their name in the state_dict, and
    integers (counts of batches) are copied instead of averaged.

    Args:
        model: The first update copies it.
        decay: Weight of the old average in each update; in (0, 1).

    Attributes:
        model: The averaged model, in evaluation mode.
        updates: Number of updates so far.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, decay=0.75)
        >>> for value in (4.0, 8.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> average.model.weight.item()
        5.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy the model."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        averaged, current = self.model.state_dict(), model.state_dict()
        floats: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, old in averaged.items():
            new = current[name]
            if self.updates == 0 or not old.is_floating_point():
                old.copy_(new)
            else:
                pair = floats.setdefault((old.device, old.dtype), ([], []))
                pair[0].append(old)
                pair[1].append(new)
        for old_values, new_values in floats.values():
            self._average(tuple(old_values), tuple(new_values), self.updates)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The autocast region of the training step, and the scaler of fp16's gradients.

    Args:
        name: fp32, bf16 or fp16.
        device: That trains.

    Attributes:
        scaler: Scales the loss so that small fp16 gradients do not vanish; leaves out the update of
            a step whose gradients overflowed (see `RateSchedule` for how that counts). Does nothing
            for fp32 and bf16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Create the scaler."""
        self._device = device.type
        self._dtype = _DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products and convolutions use the precision."""
        enabled = self._dtype != torch.float32
        # For float32 the dtype is not used, but it must be one that the device can autocast to.
        dtype = self._dtype if enabled else torch.bfloat16
        return torch.autocast(self._device, dtype=dtype, enabled=enabled)


def at_least_float32(x: Tensor) -> Tensor:
    """Return fp16 and bf16 tensors as float32, others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
