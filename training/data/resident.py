"""From arrays of a training and a test part to a long-tailed data set in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.base import LongTailedDataset, Split, channel_statistics
from training.data.longtail import published_split
from training.data.options import ResolvedData


@dataclass(frozen=True)
class Arrays:
    """One part of a data set, as read from its files.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], values 0 .. K-1.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def resident_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: Arrays,
    test: Arrays,
    data: ResolvedData,
    seed: int,
    *,
    statistics: tuple[Tensor, Tensor] | None = None,
    notes: tuple[str, ...] = (),
) -> LongTailedDataset:
    """Cut the training part to a long tail and split it; the test part stays whole.

    Args:
        name: Name on the command line.
        class_names: By label.
        train: The part that is cut.
        test: The part that is tested on.
        data: Its options.
        seed: Seed of the split.
        statistics: Mean and standard deviation per channel, float32 [C] each, of the published
            protocol; null computes them from the training split.
        notes: See `LongTailedDataset`.

    Raises:
        ConfigError: If the splits do not fit the data.
    """
    indices = published_split(
        train.labels,
        cut=data.cut,
        seed=seed,
        validation_per_class=data.validation_per_class,
        validation_from=data.validation_from,
    )
    kept, validated = (_take(train, part) for part in (indices.train, indices.validation))
    mean, std = statistics or channel_statistics(kept.images)
    return LongTailedDataset(
        name=name,
        class_names=class_names,
        train=kept,
        validation=validated,
        test=_take(test, np.arange(len(test.labels))),
        mean=mean,
        std=std,
        options=data,
        split_seed=seed,
        notes=notes,
        cut=indices.cut,
    )


def _take(arrays: Arrays, positions: NDArray[np.int64]) -> Split:
    return Split(
        torch.from_numpy(arrays.images[positions]),
        torch.from_numpy(arrays.labels[positions]),
        torch.from_numpy(positions),
    )
