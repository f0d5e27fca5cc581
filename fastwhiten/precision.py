"""How whitening lives with automatic mixed precision: it keeps its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast leaves the device of ``x`` alone.

    The input's dtype is what a user, or autocast, chose for it; inside, statistics and eigensystem
    run in the accumulation dtype. Where autocast is off there is nothing to switch.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # autocast does not know "meta"
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def backward_without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a Function's ``backward``: whoever calls it under autocast gets float32 products.

    A gradient penalty does so: its first derivative is taken inside the autocast block.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        for grad in grads:
            if grad is not None:
                with no_autocast(grad):
                    return backward(ctx, *grads)
        return backward(ctx, *grads)

    return wrapped
