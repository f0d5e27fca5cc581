"""How whitening lives with automatic mixed precision: it keeps its own."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast leaves the device of ``x`` alone.

    The input's dtype is what a user, or autocast, chose for it; inside, statistics and eigensystem
    run in the accumulation dtype. Where autocast is off there is nothing to switch.
    """
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
