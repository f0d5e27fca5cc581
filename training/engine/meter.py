"""The sums that training steps leave behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.engine.distributed import Processes
from training.errors import TrainingDiverged

if TYPE_CHECKING:
    pass

NEVER = 2**62
STEPS_BETWEEN_CHECKS = 50
"""On a GPU: reading whether the losses are finite waits for the device."""


@dataclass
class Meter:
    """Sums over the steps of an epoch, of this process, on the device that trains.

    Attributes:
        sums: float64 [3]: loss times images, correct images, images.
        diverged: int64 []: number of the first step whose loss was not finite; `NEVER` for none.
        step: int64 []: number of the last step in the run, from 1.
        seconds: Time of the steps.
    """

    sums: Tensor
    diverged: Tensor
    step: Tensor
    seconds: float = 0.0

    @classmethod
    def on(cls, device: torch.device) -> Meter:
        """Start at zero."""
        return cls(
            torch.zeros(3, dtype=torch.float64, device=device),
            torch.full((), NEVER, dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def reset(self) -> None:
        """Start at zero again, in place: a CUDA graph keeps the tensors."""
        self.sums.zero_()
        self.diverged.fill_(NEVER)
        self.seconds = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a step: mean loss [], logits [B, K], labels [B]; does not wait for the device."""
        rows = len(labels)
        self.step += 1
        self.sums[0] += loss.double() * rows
        self.sums[1] += (logits.argmax(1) == labels).sum()
        self.sums[2] += rows
        first = torch.minimum(self.diverged, self.step)
        self.diverged.copy_(torch.where(torch.isfinite(loss), self.diverged, first))

    def check(self, epoch: int, processes: Processes) -> None:
        """Raise on every process if the loss of any was not finite.

        Raises:
            TrainingDiverged: Naming the first such step.
        """
        step = -processes.maximum(-int(self.diverged))
        if step != NEVER:
            raise TrainingDiverged(
                f"training loss: expected a finite number, got none in step {step} "
                f"(epoch {epoch}); lower --optim.lr or raise --whitening_options.eps."
            )

    def totals(self, processes: Processes) -> tuple[float, float, int]:
        """Return mean loss, accuracy and number of images over all processes."""
        loss, correct, images = processes.sum_(self.sums.clone()).tolist()
        return loss / images, correct / images, int(images)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint in the middle of an epoch holds of it."""
        return {"sums": self.sums.cpu(), "seconds": self.seconds}

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device) -> Meter:
        """Continue from what `state` returned."""
        meter = cls.on(device)
        meter.sums.copy_(state["sums"])
        meter.seconds = state["seconds"]
        return meter


def is_time_to_check(step: int, device: torch.device) -> bool:
    """Whether to read, after this step, if the losses were finite."""
    return device.type == "cpu" or step % STEPS_BETWEEN_CHECKS == 0


def reported_loss(loss: Tensor) -> float:
    """Return the loss on a CPU; NaN on a GPU, where reading it would wait for the device."""
    return loss.item() if loss.device.type == "cpu" else math.nan
