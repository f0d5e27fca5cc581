"""Losses of processes with unequal shares add up to the gradient of the whole batch."""

from __future__ import annotations

import pytest
import torch

from training.config import TrainConfig
from training.config.loss import LOSS_OPTIONS
from training.data.feed import Examples
from training.engine.distributed import Processes, loss_weight
from training.losses import build_loss
from training.samplers import Batch, rank_rows

LABELS = torch.tensor([0, 0, 2, 0, 1, 0, 0, 1, 0, 0, 2])


class _Process(Processes):
    """One of three processes, where the others' part of every sum is known beforehand."""

    def __init__(self, total: torch.Tensor) -> None:
        object.__setattr__(self, "rank", 0)
        object.__setattr__(self, "world_size", 3)
        object.__setattr__(self, "total", total)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.total.to(tensor.dtype)


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
def test_the_average_of_the_gradients_is_that_of_the_batch(name: str):
    loss = build_loss(TrainConfig(loss=name), torch.tensor([50, 8, 2])).double()
    loss.set_epoch(100)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_(True)
    (whole,) = torch.autograd.grad(loss(features @ weight, LABELS), weight)
    batch = Batch(torch.arange(11), 0)
    process = _Process(loss.denominator(LABELS))
    average = torch.zeros_like(whole)
    for rank in range(3):
        rows = batch.positions[rank_rows(rank, 3)]
        examples = Examples(features[rows], LABELS[rows], batch)
        value = loss(features[rows] @ weight, LABELS[rows])
        (part,) = torch.autograd.grad(value * loss_weight(loss, examples, process), weight)
        average += part / 3
    assert torch.allclose(average, whole, rtol=1e-7)
