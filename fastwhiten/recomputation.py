"""Forwards that run again inside a backward: activation checkpointing, reversible networks.

``nn.BatchNorm`` moves its running statistics in both passes; its output does not depend on them. A
layer that blends the running covariance into the batch's has to blend in, the second time, what it
blended in the first time. Here that is kept, for passes that may be repeated: those without a graph
(``use_reentrant=True``) and those whose saved tensors somebody packs (``use_reentrant=False``). The
statistics move in the first pass only.

Compiled code cannot know its first pass, and refuses: a checkpoint that is compiled when it is
traced, a compiled layer inside of one that is not when it is repeated
(:func:`compiled_blended_in`).

The second pass knows its first one by the input: both have the same. The nearest is chosen on the
device, so nothing is read back to the host.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .backends.grouping import accumulation_dtype

# First passes of one layer that may wait for their repetition: micro-batches of a pipeline, say.
MOST = 32


def inside_backward() -> bool:
    """Return whether a backward pass is running here, so that a forward is a repetition."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


_REFUSED = (
    "ChannelWhitening: expected no activation checkpoint around a compiled layer with batch_weight "
    "below 1: its repetition would blend with statistics that the first pass has moved, and "
    "gradients would be wrong; leave the layer out of the checkpoint, or both out of torch.compile"
)


@torch.library.custom_op(add_op_namespace_prefix("blended_in"), mutates_args=())
def compiled_blended_in(running: Tensor) -> Tensor:
    """Return a copy of the running covariance, in a graph that ``torch.compile`` makes.

    Raises:
        RuntimeError: the graph is in a checkpoint. It would be repeated with the covariance that
            its first pass has moved, for the graph updates its buffers in place.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(_REFUSED)
    return running.clone(memory_format=torch.contiguous_format)


@compiled_blended_in.register_fake
def _(running: Tensor) -> Tensor:
    if torch.fx.traceback.current_meta.get("recompute") is not None:
        raise RuntimeError(_REFUSED)
    return torch.empty_like(running, memory_format=torch.contiguous_format)


@compiled_blended_in.register_vmap
def _(info: Any, in_dims: tuple[int], running: Tensor) -> tuple[Tensor, int]:
    return compiled_blended_in(running), in_dims[0]


def _may_be_repeated(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return not torch.is_grad_enabled() or hooks is not None


def _fingerprint(x: Tensor) -> Tensor:
    """Return ``[2, C]``: sums over rows, plain and weighed by the sample's place in the batch."""
    x, dtype = x.detach(), accumulation_dtype(x.dtype)
    sums = x.flatten(2).sum(2, dtype=dtype) if x.dim() > 2 else x.to(dtype)  # [N, C]
    place = torch.arange(1, x.shape[0] + 1, device=x.device, dtype=sums.dtype)
    return torch.stack([sums.sum(0), place @ sums])


class FirstPasses:
    """The running covariances that the last forwards of one layer have blended in."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MOST)
        self._repeated = 0
        self._dropped = False

    def blended_in(self, x: Tensor, running: Tensor) -> Tensor:
        """Return a copy of ``running`` ``[G, D, D]``, in a repetition of what it was before.

        Args:
            x: the input ``[N, C, *spatial]``.
            running: the running covariance as it is now.

        Raises:
            RuntimeError: the first pass of this repetition is no longer known.
        """
        if inside_backward() and self._kept:
            return self._recall(x)
        running = running.detach().clone(memory_format=torch.contiguous_format)
        if _may_be_repeated(x):
            if self._repeated >= len(self._kept):  # all have been repeated, or there is none
                self.forget()
            self._dropped |= len(self._kept) == MOST
            key = _fingerprint(x)
            self._kept.append((key, running, key.new_zeros(())))
        return running

    def forget(self) -> None:
        """Free the memory: no first pass waits for its repetition."""
        self._kept.clear()
        self._repeated = 0
        self._dropped = False

    @torch.no_grad()
    def _recall(self, x: Tensor) -> Tensor:
        """Choose the nearest; of equals one that was repeated least often, then the last."""
        self._repeated += 1
        prints, covariances, used = (
            torch.stack(column) for column in zip(*self._kept, strict=True)
        )
        wanted = _fingerprint(x)
        distance = (prints - wanted).abs().sum((1, 2)).nan_to_num(nan=torch.inf)  # [K]
        if self._dropped and distance.min() > 1e-3 * wanted.abs().sum():
            raise RuntimeError(
                f"ChannelWhitening: expected at most {MOST} forwards to wait for their repetition "
                "(activation checkpointing with batch_weight below 1), got more: the statistics "
                "that this one blended in are forgotten; run backward after fewer forwards, or "
                "leave the layer out of the checkpoint"
            )
        place = torch.arange(len(used), device=used.device, dtype=used.dtype)
        turn = torch.where(distance == distance.min(), used * len(used) - place, torch.inf)
        chosen = turn.argmin()
        for index, (_, _, count) in enumerate(self._kept):
            count.add_(chosen == index)
        return covariances.index_select(0, chosen.reshape(1))[0]
