"""Images that are decoded from files by worker processes."""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.augment import Augmentation
from training.data.base import FileSplit, LongTailedDataset, Split
from training.data.decode import evaluation_image, open_image, training_image
from training.data.feed import TrainFeed
from training.errors import ConfigError
from training.samplers.base import Batch


@dataclass(frozen=True)
class _Request:
    """An image that a worker shall decode.

    Attributes:
        position: In the split.
        entropy: (seed, epoch, batch, slot) of a training image; empty for evaluation.
    """

    position: int
    entropy: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Failure:
    """What a worker returns in place of an image that cannot be decoded."""

    message: str


_Item = tuple[Tensor, Tensor] | _Failure
"""Image and label, or why there are none."""


class _Files(Dataset[_Item]):
    """Decodes one image of a split per request; holds no state that a request could change."""

    def __init__(
        self, dataset: LongTailedDataset, split: Split | FileSplit, augmented: bool
    ) -> None:
        assert isinstance(split, FileSplit)
        # A numpy array of fixed-width bytes: forked workers share its pages, where a tuple of str
        # would be copied bit by bit as reference counts are touched.
        self.paths = np.array([os.fsencode(path) for path in split.paths])
        self.labels = split.labels.cpu()
        self.options = dataset.options
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, request: _Request) -> _Item:
        try:
            image = open_image(os.fsdecode(self.paths[request.position]))
        except ConfigError as error:
            # Raised in a worker, it would arrive wrapped in that worker's traceback.
            return _Failure(str(error))
        label = self.labels[request.position]
        if not request.entropy:
            return evaluation_image(image, self.options), label
        rng = np.random.default_rng(request.entropy)
        return training_image(image, self.options, rng, self.augmented), label


def _collate(items: list[_Item]) -> _Item:
    """Stack to uint8 [b, 3, S, S] and int64 [b], or pass on the first failure."""
    images, labels = [], []
    for item in items:
        if isinstance(item, _Failure):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.stack(labels)


def _start_worker(_: int) -> None:
    """Leave signals to the training process, which stops its workers itself.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; a worker that died of it would
    break the epoch before the training process has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Workers:
    """Processes that decode the images of a split, from the first request until `close`.

    They ignore SIGTERM, so Python's exit handler, which sends it and then waits, would wait for
    ever: whoever makes this closes it on every way out. What was forgotten is closed at exit.
    """

    def __init__(self, files: _Files, count: int, device: torch.device) -> None:
        """Prepare ``count`` processes; with 0 of them this one decodes."""
        self._batches: Iterator[list[_Request]] = iter(())
        self._device = device
        self._loader: DataLoader[_Item] = DataLoader(
            files,
            batch_sampler=self,
            num_workers=count,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            persistent_workers=count > 0,
        )
        _OPEN.add(self)

    def __iter__(self) -> Iterator[list[_Request]]:
        """What the loader asks its batch sampler for: the batches of this pass."""
        return self._batches

    def decode(self, batches: Iterable[list[_Request]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels of each batch, on the device.

        Raises:
            ConfigError: If an image could not be decoded.
        """
        self._batches = iter(batches)
        for item in self._loader:
            if isinstance(item, _Failure):
                raise ConfigError(item.message)
            images, labels = (tensor.to(self._device, non_blocking=True) for tensor in item)
            yield images, labels

    def close(self) -> None:
        """End the processes, and wait for that."""
        running: Any = self._loader._iterator
        self._loader._iterator = None
        if running is not None:
            # Not left to its destructor: the traceback of an error may hold it until the exit.
            running._shutdown_workers()


_OPEN: weakref.WeakSet[_Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for workers in list(_OPEN):
        workers.close()


class FileFeed(TrainFeed):
    """Files that worker processes decode, crop and flip; the rest happens on the training device.

    In the workers the image's place in the batch is mixed into the seed as well.

    Args:
        dataset: Of files, on the training device.
        augmentation: See `TrainFeed`.
        seed: See `TrainFeed`.
        rank: See `TrainFeed`.
        world_size: See `TrainFeed`.
    """

    def __init__(
        self,
        dataset: LongTailedDataset,
        augmentation: Augmentation,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare the workers; they start with the first epoch and stay until `close`."""
        super().__init__(dataset, augmentation, seed, rank, world_size)
        files = _Files(dataset, dataset.train, dataset.options.augment != "none")
        self._workers = _Workers(files, dataset.options.workers, dataset.device)

    def load(self, plan: Iterable[Batch], epoch: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Receive what the workers decoded; see `TrainFeed.load`."""
        waiting: deque[Batch] = deque()  # asked for, and not here yet: the loader keeps the order
        for images, labels in self._workers.decode(self._ask(plan, epoch, waiting)):
            yield waiting.popleft(), images, labels

    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    def _ask(
        self, plan: Iterable[Batch], epoch: int, waiting: deque[Batch]
    ) -> Iterator[list[_Request]]:
        for batch in plan:
            waiting.append(batch)
            positions = batch.positions.tolist()
            yield [
                _Request(positions[slot], (self.seed, epoch, batch.index, slot))
                for slot in range(len(positions))[self.slots]
            ]


def evaluation_files(
    dataset: LongTailedDataset, split: FileSplit, batch_size: int, rank: int, world_size: int
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield a rank's images and labels; see `training.data.evaluation_batches`."""
    share = range(rank, len(split), world_size)
    requests = [
        [_Request(position) for position in share[start : start + batch_size]]
        for start in range(0, len(share), batch_size)
    ]
    files = _Files(dataset, split, augmented=False)
    count = min(dataset.options.workers, len(requests))
    with closing(_Workers(files, count, dataset.device)) as workers:
        for images, labels in workers.decode(requests):
            yield dataset.normalise(images), labels
