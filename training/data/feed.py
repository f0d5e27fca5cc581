"""From a plan of batches to tensors on the device that trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from training.data.augment import random_shift
from training.data.base import LongTailedDataset
from training.reproducibility import generator
from training.samplers.base import Batch


@dataclass(frozen=True)
class Examples:
    """What a training step gets.

    Attributes:
        images: Augmented and normalised, float32 [B, C, H, W], on the training device.
        labels: int64 [B], on the training device.
        batch: The batch of the plan that they come from.
    """

    images: Tensor
    labels: Tensor
    batch: Batch


class TrainFeed(Protocol):
    """Loads and augments the batches of a plan."""

    def examples(self, plan: Iterable[Batch], epoch: int) -> Iterator[Examples]:
        """Yield the examples of each batch; random augmentation depends on (epoch, index) alone."""
        ...


class ResidentFeed:
    """Images that live on the training device as uint8 and are augmented there in batches.

    Args:
        dataset: On the training device.
        shift: See `DataConfig`.
        seed: Seed of the augmentation; epoch and number of the batch are mixed in.
    """

    def __init__(self, dataset: LongTailedDataset, shift: int, seed: int) -> None:
        """Remember the parts."""
        self.dataset = dataset
        self.shift = shift
        self.seed = seed

    def examples(self, plan: Iterable[Batch], epoch: int) -> Iterator[Examples]:
        """Yield the examples of each batch; random augmentation depends on (epoch, index) alone."""
        train = self.dataset.train
        device = train.images.device
        for batch in plan:
            positions = batch.positions.to(device)  # [B]
            augmentation = generator(device, self.seed, epoch, batch.index)
            images = random_shift(train.images[positions], self.shift, augmentation)
            yield Examples(self.dataset.normalise(images), train.labels[positions], batch)
