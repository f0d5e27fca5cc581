"""What every data set gives to the recipe: three splits, of resident images or of files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from training.data.options import ResolvedData

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], in [0, K).
        indices: int64 [N], positions in the source, to check that splits are disjoint. (A test
            split of its own file counts from 0 again.)
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        """Return the number N of images."""
        return int(self.labels.shape[0])

    def to(self, device: torch.device) -> Split:
        """Return the split with its images and labels on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, positions: Tensor) -> Split:
        """Return the images at these positions of the split, int64 [M]."""
        here = positions.to(self.labels.device)
        return Split(self.images[here], self.labels[here], self.indices[positions.cpu()])


@dataclass(frozen=True)
class FileSplit:
    """Image files and labels of one split; the files are decoded when they are needed.

    Attributes:
        paths: The N files.
        labels: int64 [N], in [0, K).
        indices: As in `Split`.
    """

    paths: tuple[str, ...]
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        """Return the number N of images."""
        return len(self.paths)

    def to(self, device: torch.device) -> FileSplit:
        """Return the split with its labels on a device."""
        return replace(self, labels=self.labels.to(device))

    def take(self, positions: Tensor) -> FileSplit:
        """Return the files at these positions of the split, int64 [M]."""
        paths = tuple(self.paths[position] for position in positions.tolist())
        labels = self.labels[positions.to(self.labels.device)]
        return FileSplit(paths, labels, self.indices[positions.cpu()])


@dataclass(frozen=True)
class LongTailedDataset:
    """A long-tailed training split with a validation and a test split.

    Attributes:
        name: Name on the command line.
        class_names: The K class names, by label.
        train: Long-tailed training split.
        validation: Split of the training data for model selection; may be empty, see
            `has_validation`.
        test: Held-out split, never used for a choice.
        mean: What `normalise` subtracts per channel, float32 [C], in units of the uint8 values.
        std: What it divides by, float32 [C], same units.
        options: How it was cut and split, and is to be decoded and augmented.
        split_seed: Seed that the splits were drawn with.
        cut: What a long-tail cut has dropped, a sentence; empty if all images are used.
        notes: What a person should know about the files, a sentence each.
        white: The value of white in the images.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split | FileSplit
    validation: Split | FileSplit
    test: Split | FileSplit
    mean: Tensor
    std: Tensor
    options: ResolvedData
    split_seed: int = 0
    notes: tuple[str, ...] = ()
    cut: str = ""
    white: int = 255

    @property
    def num_classes(self) -> int:
        """The number K of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number C of colour channels."""
        return int(self.mean.shape[0])

    @property
    def resident(self) -> bool:
        """Whether the images are in memory, not in files."""
        return isinstance(self.train, Split)

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split to choose a model on."""
        return len(self.validation) > 0

    @property
    def device(self) -> torch.device:
        """Where batches come out."""
        return self.mean.device

    @property
    def class_counts(self) -> Tensor:
        """Training images per class, int64 [K], on the CPU."""
        return torch.bincount(self.train.labels.cpu(), minlength=self.num_classes)

    @property
    def imbalance_factor(self) -> float:
        """Training images of the most frequent class over those of the rarest, as counted."""
        counts = self.class_counts
        return (counts.max() / counts.min()).item()

    def preparation(self) -> dict[str, Any]:
        """How an image becomes what a model takes, as the command ``predict`` reads it."""
        if isinstance(self.train, Split):
            size = list(self.train.images.shape[2:])
        else:
            size = [self.options.image_size] * 2
        return {
            "channels": self.channels,
            "size": size,  # height, width
            "resize": None if self.resident else self.options.resize,
            "white": self.white,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    def split(self, name: SplitName) -> Split | FileSplit:
        """Return a split by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32, (images - mean) / std per channel."""
        return (images.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def to(self, device: torch.device) -> LongTailedDataset:
        """Return the data set with all tensors on a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, H, W] -> mean and standard deviation per channel, float32 [C] each.

    From a histogram per channel: exact sums of integers, without a copy of the images in floats.
    """
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten()
        weights = torch.bincount(pixels, minlength=256).double() / pixels.numel()  # [256]
        mean = (weights * values).sum()
        means.append(mean)
        deviations.append((weights * (values - mean).square()).sum().sqrt())
    # One uint8 step is a floor: a constant channel must not be divided by zero.
    return torch.stack(means).float(), torch.stack(deviations).clamp_min(1.0).float()
