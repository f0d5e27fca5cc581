"""Where a run is in its plan of batches: the sampler's part of a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from torch import Tensor

from training.errors import ConfigError
from training.samplers.base import Batch, BatchSampler


class PlanCursor:
    """The next batch of a run, as (epoch, index), and what identifies the plan it counts in.

    As the plan is a pure function, two numbers are all the state there is. An epoch ends with
    `next_epoch`, not with its last batch: a run that is saved between the two (its last step is
    done, its evaluation is not) comes back to this place.

    Args:
        sampler: The plan.
        labels: Class of every training image, int64 [N]: the plan's positions point into these.

    Attributes:
        sampler: The plan.
        epoch: The current epoch, from 1.
        index: Batches of it that are done; in [0, len(sampler)].

    Example:
        >>> import torch
        >>> from training.samplers import InstanceSampler
        >>> labels = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0])
        >>> cursor = PlanCursor(InstanceSampler(8, 4, seed=0, drop_last=True), labels)
        >>> for batch in cursor.batches():
        ...     cursor.advance(batch)
        >>> cursor.epoch, cursor.index, cursor.steps
        (1, 2, 2)
        >>> cursor.next_epoch()
        >>> cursor.epoch, cursor.index, cursor.steps
        (2, 0, 2)
    """

    def __init__(self, sampler: BatchSampler, labels: Tensor) -> None:
        """Begin with the first batch of epoch 1."""
        self.sampler = sampler
        self._labels = labels
        self.epoch = 1
        self.index = 0

    @property
    def steps(self) -> int:
        """Batches of the run that are done."""
        return (self.epoch - 1) * len(self.sampler) + self.index

    def batches(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch (read once: the cursor may move meanwhile)."""
        return self.sampler.batches(self.epoch, self.index)

    def advance(self, batch: Batch) -> None:
        """Note that the step on this batch of the current epoch is done."""
        self.index = batch.index + 1

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.index = self.epoch + 1, 0

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What identifies plan and data, as plain values.

        The sampler's parameters, and two hashes: "labels" of the training images' classes, and
        "first_epoch" of the batches of epoch 1, which changes with the sampler's code as well.
        """
        labels = self._labels.cpu().numpy().tobytes()
        batches = hashlib.sha256()
        for batch in self.sampler.batches(1):
            batches.update(batch.positions.numpy().tobytes() + batch.kind.encode() + b"|")
        return {
            **self.sampler.parameters(),
            "labels": hashlib.sha256(labels).hexdigest()[:16],
            "first_epoch": batches.hexdigest()[:16],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: "epoch", "index" and the "plan" they count in."""
        return {"epoch": self.epoch, "index": self.index, "plan": self.plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a stored place.

        Raises:
            ConfigError: If the plan of the state is another one; the text names what differs.
        """
        stored, present = state["plan"], self.plan
        different = [
            f"{name}: {stored.get(name, 'none')!r} there, {present.get(name, 'none')!r} now"
            for name in sorted(stored.keys() | present.keys())
            if stored.get(name) != present.get(name)
        ]
        if different:
            raise ConfigError(
                "resume: expected the plan of batches that the checkpoint was written with, got "
                f"another one ({'; '.join(different)}; labels and first_epoch are hashes of the "
                "training images' classes and of the batches of epoch 1); resume with the same "
                "options, data and version of this package, or start again with --resume none."
            )
        if state["epoch"] < 1 or not 0 <= state["index"] <= len(self.sampler):
            raise ConfigError(
                f"resume: expected an epoch >= 1 and at most {len(self.sampler)} batches done of "
                f"it, got epoch {state['epoch']} and {state['index']} batches; the checkpoint is "
                "damaged: use another one, or start again with --resume none."
            )
        self.epoch, self.index = state["epoch"], state["index"]
