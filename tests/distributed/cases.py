"""What the processes of the tests do, each with its part of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

import fastwhiten
from tests.distributed.processes import groups


def part(t: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
    """The samples of one rank: ``sizes[rank]`` of them, in the memory layout of ``t``."""
    start = sum(sizes[:rank])
    return t[start : start + sizes[rank]].clone(memory_format=torch.preserve_format)


def whiten(
    rank: int,
    x: Tensor,
    grad: Tensor,
    sizes: tuple[int, ...],
    weight: Tensor | None,
    options: dict[str, Any],
) -> dict[str, Any] | None:
    """Output and gradient of the samples here, and how many collectives that took."""
    if rank >= len(sizes):
        return None
    leaf = part(x, sizes, rank).requires_grad_()
    sample_weight = None if weight is None else part(weight, sizes, rank)
    with CommDebugMode() as forward:
        y = fastwhiten.whiten(
            leaf, sample_weight=sample_weight, process_group=groups[len(sizes)], **options
        )
    with CommDebugMode() as backward:
        (dx,) = torch.autograd.grad(y, leaf, part(grad, sizes, rank))
    return {
        "y": y.detach(),
        "dx": dx,
        "forward": forward.get_total_counts(),
        "backward": backward.get_total_counts(),
    }
