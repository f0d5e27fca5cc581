"""What the processes of the tests do, each with its part of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastwhiten
from fastwhiten import distributed
from tests.distributed.processes import collectives, groups


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
    size = len(sizes)
    start = collectives(size)
    y = fastwhiten.whiten(leaf, sample_weight=sample_weight, process_group=groups[size], **options)
    middle = collectives(size)
    (dx,) = torch.autograd.grad(y, leaf, part(grad, sizes, rank))
    counts = (middle - start, collectives(size) - middle)
    return {"y": y.detach(), "dx": dx, "collectives": counts}


def second_derivative(
    rank: int,
    x: Tensor,
    grad: Tensor,
    v: Tensor,
    sizes: tuple[int, ...],
    weight: Tensor | None,
    options: dict[str, Any],
) -> dict[str, Tensor] | None:
    """Gradients of ``<v, dx>`` with respect to the rows and to the gradient of the output."""
    if rank >= len(sizes):
        return None
    leaf, g = (part(t, sizes, rank).requires_grad_() for t in (x, grad))
    y = fastwhiten.whiten(
        leaf,
        sample_weight=None if weight is None else part(weight, sizes, rank),
        process_group=groups[len(sizes)],
        **options,
    )
    (dx,) = torch.autograd.grad(y, leaf, g, create_graph=True)
    d_x, d_grad = torch.autograd.grad(dx, (leaf, g), part(v, sizes, rank))
    return {"dx": d_x, "dgrad": d_grad}


def weights_here_and_there(rank: int, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Weights on the first process, none on the second (1 each), all zero on the third."""
    here = part(x, sizes, rank)
    weight = [torch.full((sizes[0],), 3.0), None, torch.zeros(sizes[2])][rank]
    return fastwhiten.whiten(here, sample_weight=weight, process_group="world")


def transformed(rank: int, x: Tensor, sizes: tuple[int, ...], how: str) -> Tensor | None:
    """Gradient of a loss by another way than ``backward``, or a vmapped gradient."""
    if rank >= len(sizes):
        return None
    group = groups[len(sizes)]
    layer = fastwhiten.ChannelWhitening(x.shape[-1], eps=0.1, process_group=group).double()

    def loss(t: Tensor) -> Tensor:
        if how == "compiled layer":
            y = layer(t)
        else:
            y = fastwhiten.whiten(t, eps=0.1, process_group=group)
        return (y.tanh() * torch.linspace(0, 1, t.shape[-1]).to(y)).sum()

    if how == "vmap":  # [N, B, C]: B problems at once
        return torch.func.vmap(torch.func.grad(loss), 1, 1)(part(x, sizes, rank))
    here = part(x, sizes, rank)
    if how == "grad":
        return torch.func.grad(loss)(here)
    if how in ("compile", "compiled layer"):
        torch._dynamo.reset()
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    here.requires_grad_()
    if how == "checkpoint":
        total = torch.utils.checkpoint.checkpoint(loss, here, use_reentrant=False)
    else:
        total = loss(here)
    total.backward()
    return here.grad


def error(rank: int, rows: int, options: dict[str, Any]) -> str:
    """Message of the ValueError that whitening ``rows`` rows on each process raises."""
    weight = options.pop("zero_weight", None) and torch.zeros(rows)
    try:
        fastwhiten.whiten(torch.ones(rows, 3), sample_weight=weight, **options)
    except ValueError as e:
        return str(e)
    return "nothing was raised"


def error_outside(rank: int) -> str:
    """Message of the error that the last process gets with a group that it is not in."""
    if rank < 2:
        return ""
    before = collectives(3)
    try:
        fastwhiten.ChannelWhitening(3, process_group=groups[2])
    except ValueError as e:
        assert collectives(3) == before
        return str(e)
    return "nothing was raised"


def combine(
    rank: int, means: Tensor, covariances: Tensor, headers: Tensor
) -> distributed.Moments | None:
    """Moments of all processes from ``[R, C]``, ``[R, G, D, D]`` and ``[R, 3]``."""
    if rank >= len(means):
        return None
    group = distributed.resolve("combine", groups[len(means)])
    assert group is not None
    return distributed.combine(means[rank], covariances[rank], headers[rank], group)
