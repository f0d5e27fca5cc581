"""What every data set gives to the recipe: three splits of uint8 images, resident on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], in [0, K).
        indices: int64 [N], positions in the source, to check that splits are disjoint.
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


@dataclass(frozen=True)
class LongTailedDataset:
    """A long-tailed training split with balanced validation and test splits.

    Attributes:
        name: Name on the command line.
        class_names: The K class names; class 0 is the most frequent one.
        train: Long-tailed training split.
        validation: Split of the training data for model selection.
        test: Held-out split, never used for a choice.
        mean: Mean of the training pixels per channel, float32 [C], in units of the uint8 values.
        std: Their standard deviation, float32 [C], same units.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor

    @property
    def num_classes(self) -> int:
        """The number K of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Training images per class, int64 [K], on the CPU."""
        return torch.bincount(self.train.labels.cpu(), minlength=self.num_classes)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 of zero mean and unit variance over the training split."""
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
    """uint8 [N, C, H, W] -> mean and standard deviation per channel, float32 [C] each."""
    pixels = images.double().transpose(0, 1).flatten(1)  # [C, N * H * W]
    # One uint8 step is a floor: a constant channel must not be divided by zero.
    return pixels.mean(1).float(), pixels.std(1, correction=0).clamp_min(1.0).float()
