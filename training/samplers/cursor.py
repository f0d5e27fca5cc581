"""Where a run is in its plan: the sampler's part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.errors import ConfigError
from training.samplers.base import Batch, BatchSampler


class PlanCursor:
    """The next batch of a run, as (epoch, index), with the parameters of the plan it counts in.

    As the plan is a pure function, two numbers are all the state there is.

    Args:
        sampler: The plan.

    Attributes:
        epoch: Epoch of the next batch, from 1.
        index: Its number within the epoch; never the number of batches (the next epoch's 0 then).

    Example:
        >>> from training.samplers import InstanceSampler
        >>> cursor = PlanCursor(InstanceSampler(8, 4, seed=0, drop_last=True))
        >>> for batch in cursor.batches():
        ...     cursor.advance(batch)
        >>> cursor.epoch, cursor.index
        (2, 0)
    """

    def __init__(self, sampler: BatchSampler) -> None:
        """Begin with the first batch of epoch 1."""
        self._sampler = sampler
        self.epoch = 1
        self.index = 0

    def batches(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch (read once: the cursor may move meanwhile)."""
        return self._sampler.batches(self.epoch, self.index)

    def advance(self, batch: Batch) -> None:
        """Note that the step on this batch of the current epoch is done."""
        self.index = batch.index + 1
        if self.index >= len(self._sampler):
            self.epoch, self.index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: "epoch", "index" and the "plan" they count in."""
        return {"epoch": self.epoch, "index": self.index, "plan": self._sampler.parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a stored place.

        Raises:
            ConfigError: If the plan of the state is another one; the text names what differs.
        """
        stored, present = state["plan"], self._sampler.parameters()
        different = [
            f"{name}: {stored.get(name, 'none')!r} there, {present.get(name, 'none')!r} here"
            for name in sorted(stored.keys() | present.keys())
            if stored.get(name) != present.get(name)
        ]
        if different:
            raise ConfigError(
                "resume: expected the plan of batches that the checkpoint was written with, got "
                f"another one ({'; '.join(different)}); resume with the same options and data, or "
                "start a new run."
            )
        if state["epoch"] < 1 or not 0 <= state["index"] < len(self._sampler):
            raise ConfigError(
                f"resume: expected an epoch >= 1 and a batch below {len(self._sampler)}, got "
                f"epoch {state['epoch']} and batch {state['index']}; the checkpoint is damaged."
            )
        self.epoch, self.index = state["epoch"], state["index"]
