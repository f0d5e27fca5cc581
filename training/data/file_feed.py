"""Images that are decoded from files by worker processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.augment import Augmentation
from training.data.base import FileLoading, FileSplit, LongTailedDataset
from training.data.decode import evaluation_image, open_image, training_image
from training.data.feed import Examples
from training.errors import ConfigError
from training.samplers.base import Batch, rank_rows


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


class _Files(Dataset):
    """Decodes one image of a split per request; holds no state that a request could change."""

    def __init__(self, split: FileSplit, loading: FileLoading, augmented: bool) -> None:
        # A numpy array of fixed-width bytes: forked workers share its pages, where a tuple of str
        # would be copied bit by bit as reference counts are touched.
        self.paths = np.array([path.encode() for path in split.paths])
        self.labels = split.labels.cpu()
        self.loading = loading
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, request: _Request) -> tuple[Tensor, Tensor] | _Failure:
        try:
            image = open_image(self.paths[request.position].decode())
        except ConfigError as error:
            # Raised in a worker, it would arrive wrapped in that worker's traceback.
            return _Failure(str(error))
        label = self.labels[request.position]
        if not request.entropy:
            return evaluation_image(image, self.loading), label
        rng = np.random.default_rng(request.entropy)
        return training_image(image, self.loading, rng, self.augmented), label


def _collate(items: list[tuple[Tensor, Tensor] | _Failure]) -> tuple[Tensor, Tensor] | _Failure:
    """Stack to uint8 [b, 3, S, S] and int64 [b], or pass on the first failure."""
    for item in items:
        if isinstance(item, _Failure):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels)


def _start_worker(_: int) -> None:
    """Leave signals to the training process, which stops its workers itself.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; a worker that died of it would
    break the epoch before the training process has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Requests:
    """The batch sampler of a loader that outlives an epoch: what it yields is set for each."""

    def __init__(self) -> None:
        self.batches: Iterator[list[_Request]] = iter(())

    def __iter__(self) -> Iterator[list[_Request]]:
        return self.batches


def _loader(
    files: _Files,
    requests: Iterable[list[_Request]],
    workers: int,
    device: torch.device,
    keep: bool,
) -> DataLoader:
    return DataLoader(
        files,
        batch_sampler=requests,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        persistent_workers=keep and workers > 0,
    )


def _received(item: tuple[Tensor, Tensor] | _Failure, device: torch.device) -> list[Tensor]:
    """Return the images and labels of a batch on a device.

    Raises:
        ConfigError: If an image could not be decoded.
    """
    if isinstance(item, _Failure):
        raise ConfigError(item.message)
    return [tensor.to(device, non_blocking=True) for tensor in item]


class FileFeed:
    """Files that worker processes decode, crop and flip; the rest happens on the training device.

    Args:
        dataset: Of files, on the training device.
        augmentation: What to do to the images on the device.
        seed: Seed of the augmentation; epoch, number of the batch and place in it are mixed in.
        rank: See `build_feed`.
        world_size: See `build_feed`.
    """

    def __init__(
        self,
        dataset: LongTailedDataset,
        augmentation: Augmentation,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Make the loader; its workers start with the first epoch and stay."""
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.slots = rank_rows(rank, world_size)
        self._requests = _Requests()
        files = _Files(dataset.train, dataset.loading, augmentation.data.augment != "none")
        workers = dataset.loading.workers
        self._loader = _loader(files, self._requests, workers, dataset.device, keep=True)

    def examples(self, plan: Iterable[Batch], epoch: int) -> Iterator[Examples]:
        """See `TrainFeed`."""
        waiting: deque[Batch] = deque()  # asked for, and not here yet: the loader keeps the order
        self._requests.batches = self._ask(plan, epoch, waiting)
        for item in self._loader:
            batch = waiting.popleft()
            images, labels = _received(item, self.dataset.device)
            entropy = (self.seed, epoch, batch.index)
            images = self.augmentation(images, entropy, len(batch.positions), self.slots)
            yield Examples(self.dataset.normalise(images), labels, batch)

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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a rank's images and labels; see `LongTailedDataset.evaluation_batches`."""
    share = range(rank, len(split), world_size)
    requests = [
        [_Request(position) for position in share[start : start + batch_size]]
        for start in range(0, len(share), batch_size)
    ]
    files = _Files(split, dataset.loading, augmented=False)
    workers = min(dataset.loading.workers, len(requests))
    for item in _loader(files, requests, workers, dataset.device, keep=False):
        images, labels = _received(item, dataset.device)
        yield dataset.normalise(images), labels
