"""An exponential moving average of a model's weights and running statistics."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
