"""What the processes of the layer's tests do, each with its part of the batches."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastwhiten import ChannelWhitening
from tests.distributed.cases import part
from tests.distributed.processes import collectives, groups

State = dict[str, Tensor]


def state(module: nn.Module) -> State:
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def train_layer(
    rank: int, batches: list[Tensor], sizes: tuple[int, ...], options: dict[str, Any]
) -> tuple[State, list[Tensor], Tensor | None] | None:
    """State after some batches, their outputs, the gradient of the scale in the last one."""
    if rank >= len(sizes):
        return None
    layer = ChannelWhitening(
        batches[0].shape[1], process_group=groups[len(sizes)], dtype=torch.float64, **options
    )
    outputs = []
    for x in batches:
        layer.zero_grad()
        y = layer(part(x, sizes, rank).requires_grad_())
        (y * torch.linspace(-1, 1, y.shape[1])).square().sum().backward()
        outputs.append(y.detach())
    scale = None if layer.weight is None else layer.weight.grad
    return state(layer), outputs, scale


def evaluate_alone(rank: int, x: Tensor) -> int:
    """Train on all, then evaluate on one process; how many collectives the evaluation ran."""
    layer = ChannelWhitening(x.shape[1], process_group="world", dtype=torch.float64)
    layer(x)
    before = collectives(3)
    if rank == 1:
        layer.eval()(x)
        loose = ChannelWhitening(x.shape[1], process_group="world", track_running_stats=False)
        loose.eval()(x.float())
    return collectives(3) - before


def copies(rank: int, x: Tensor, sizes: tuple[int, ...]) -> list[Tensor] | None:
    """Outputs of a layer and its copies, with a ProcessGroup and with "world"."""
    if rank >= len(sizes):
        return None
    layer = ChannelWhitening(x.shape[1], process_group=groups[2], dtype=torch.float64)
    twin = copy.deepcopy(nn.Sequential(layer))[0]
    assert twin.process_group is layer.process_group
    assert twin.running_mean is not layer.running_mean
    named = pickle.loads(pickle.dumps(ChannelWhitening(x.shape[1], process_group="world")))
    assert named.process_group == "world"
    here = part(x, sizes, rank)
    return [layer(here), twin(here)]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8), ChannelWhitening(8, affine=True, groups=2), nn.Linear(8, 3)
    ).double()


def batch_loss(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, reduction="sum")


def train_network(
    rank: int, batches: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], alone: bool
) -> State | None:
    """Parameters and buffers after SGD steps under DistributedDataParallel.

    With ``alone``, rank 0 evaluates by itself between the steps.
    """
    if rank >= len(sizes):
        return None
    size = len(sizes)
    group = groups[size]
    model = ChannelWhitening.convert_sync(network(seed=rank), group)
    ddp = DistributedDataParallel(model, process_group=None if group == "world" else group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        # The reducer averages over processes; this makes it the mean over all samples.
        loss = batch_loss(ddp(part(x, sizes, rank)), part(y, sizes, rank)) * size / len(x)
        loss.backward()
        optimizer.step()
        if alone and rank == 0:
            model.eval()(x)
            model.train()
    return state(model)
