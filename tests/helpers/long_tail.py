"""Labels of long-tailed training data, and samplers on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.samplers import BatchSampler, build_sampler


def labels_of(counts: list[int], seed: int = 0) -> Tensor:
    """Labels with these numbers of images per class, in random order, int64 [N]."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def cifar100_lt_counts(imbalance_factor: int = 100) -> list[int]:
    """Class counts of CIFAR-100-LT (Cao et al.): 10,847 images at imbalance factor 100."""
    return [int(500 * (1 / imbalance_factor) ** (k / 99)) for k in range(100)]


def sampler_of(labels: Tensor, sampler: str, batch_size: int = 20, **options: Any) -> BatchSampler:
    """Return the sampler with options of `TrainConfig` and of its `sampler_options`."""
    config = TrainConfig(sampler=sampler)
    config.data.batch_size = batch_size
    seed = options.pop("seed", 0)
    config.data.drop_last = options.pop("drop_last", True)
    config.optim.epochs = options.pop("epochs", config.optim.epochs)
    config.bet_period = options.pop("bet_period", None)
    for name, value in options.items():
        assert hasattr(config.sampler_options, name)
        setattr(config.sampler_options, name, value)
    return build_sampler(config, labels, seed)


def epoch_positions(sampler: BatchSampler, epoch: int, kind: str | None = None) -> Tensor:
    """Return all positions of an epoch's batches (of one kind), in order."""
    found = [b.positions for b in sampler.batches(epoch) if kind in (None, b.kind)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def class_counts(sampler: BatchSampler, labels: Tensor, epochs: range, kind: str | None = None):
    """Return how many images of each class the epochs draw, [K]."""
    drawn = torch.cat([epoch_positions(sampler, epoch, kind) for epoch in epochs])
    return torch.bincount(labels[drawn], minlength=int(labels.max()) + 1)
