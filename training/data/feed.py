"""From a plan of batches to tensors on the device that trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.augment import Augmentation
from training.data.base import LongTailedDataset, Split
from training.samplers.base import Batch, rank_rows


@dataclass(frozen=True)
class Examples:
    """What a training step gets.

    Attributes:
        images: Augmented and normalised, float32 [b, C, H, W], on the training device; those of the
            rank, at positions ``batch.positions[rank_rows(rank, world_size)]``.
        labels: int64 [b], on the training device.
        batch: The batch of the plan that they come from, of all ranks together.
    """

    images: Tensor
    labels: Tensor
    batch: Batch


class TrainFeed(ABC):
    """Loads and augments the batches of a plan; `training.data.build_feed` chooses one.

    Args:
        dataset: On the training device.
        augmentation: What to do to the images on the device.
        seed: Seed of the augmentation; epoch and number of the batch are mixed in.
        rank: See `training.data.build_feed`.
        world_size: See `training.data.build_feed`.

    Attributes:
        slots: The rank's rows of every batch.
    """

    def __init__(
        self,
        dataset: LongTailedDataset,
        augmentation: Augmentation,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Remember the parts."""
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.slots = rank_rows(rank, world_size)

    @abstractmethod
    def load(self, plan: Iterable[Batch], epoch: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Yield each batch with the rank's images, uint8 [b, C, H, W], and labels, int64 [b].

        Both are on the training device. What is random in them depends on the seed, the epoch, the
        number of the batch and the image's place in it alone.
        """

    def close(self) -> None:  # noqa: B027, most feeds have nothing to end
        """End what the feed has started; whoever builds a feed calls this on every way out."""

    def examples(self, plan: Iterable[Batch], epoch: int) -> Iterator[Examples]:
        """Yield the examples of each batch.

        Random augmentation depends on the seed, the epoch, the number of the batch and the image's
        place in it alone: a plan that starts in the middle of an epoch goes on as the whole would,
        and the ranks together have what one process has.
        """
        for batch, images, labels in self.load(plan, epoch):
            entropy = (self.seed, epoch, batch.index)
            images = self.augmentation(images, entropy, len(batch.positions), self.slots)
            yield Examples(self.dataset.normalise(images), labels, batch)


class ResidentFeed(TrainFeed):
    """Images that live on the training device as uint8 and are augmented there in batches."""

    def load(self, plan: Iterable[Batch], epoch: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Pick the images; see `TrainFeed.load`."""
        train = self.dataset.train
        assert isinstance(train, Split)  # `build_feed` gives files to `FileFeed`
        batches = list(plan)
        rows = [batch.positions[self.slots] for batch in batches]  # [b] each
        # All at once: a copy from pageable memory waits for what the device was given before.
        everything = torch.cat([torch.empty(0, dtype=torch.int64), *rows]).to(self.dataset.device)
        sizes = [len(positions) for positions in rows]
        for batch, positions in zip(batches, everything.split(sizes), strict=True):
            yield batch, train.images[positions], train.labels[positions]
