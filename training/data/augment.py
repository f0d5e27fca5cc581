"""Augmentation of small images as batched tensor code on the device that holds them.

Random values are drawn for the whole batch of the plan, and every rank takes those of its slots: an
image is augmented the same way however many ranks there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import DataConfig
from training.reproducibility import generator

ALL_SLOTS = slice(None)


@dataclass(frozen=True)
class Augmentation:
    """The configured augmentation of a batch of uint8 images.

    Attributes:
        data: Resolved options.
        fill: What cutout leaves, uint8 [C]: the mean pixel, 0 after normalisation.
        crop: Whether to shift or crop and flip; not where workers already did.
    """

    data: DataConfig
    fill: Tensor
    crop: bool = True

    def __call__(
        self, images: Tensor, entropy: tuple[int, ...], batch: int, slots: slice = ALL_SLOTS
    ) -> Tensor:
        """Augment images.

        Args:
            images: uint8 [b, C, H, W], those of the rank.
            entropy: What the random values depend on: (seed, epoch, number of the batch).
            batch: Number B of images in the batch of all ranks.
            slots: Which of them are here.

        Returns:
            The augmented images, same shape and dtype.
        """
        data = self.data
        source = generator(images.device, *entropy)
        if data.augment == "none":
            return self._cut_out(images, source, batch, slots)
        if self.crop:
            pixels = data.shift if data.augment == "shift" else data.crop_padding
            images = random_shift(images, pixels, source, batch, slots)
        if self.crop and data.augment != "shift":
            images = random_flip(images, source, batch, slots)
        if data.augment in ("autoaugment", "randaugment"):
            images = self._policy(images, entropy, batch, slots)
        return self._cut_out(images, source, batch, slots)

    def _policy(self, images: Tensor, entropy: tuple[int, ...], batch: int, slots: slice) -> Tensor:
        from training.data import policies  # kornia takes seconds to import

        # Drawn on the CPU: which image gets which operation decides what is launched.
        source = generator("cpu", *entropy, _POLICY)
        if self.data.augment == "autoaugment":
            chosen = policies.draw_autoaugment(batch, source)
        else:
            ops, magnitude = self.data.randaugment_ops, self.data.randaugment_magnitude
            chosen = policies.draw_randaugment(batch, ops, magnitude, source)
        return policies.apply(images, chosen.take(slots))

    def _cut_out(self, images: Tensor, source: torch.Generator, batch: int, slots: slice) -> Tensor:
        if self.data.cutout == 0:
            return images
        return random_cutout(images, self.data.cutout, self.fill, source, batch, slots)


_POLICY = 1  # distinguishes the policy's stream from the one of crop, flip and cutout


def random_shift(
    images: Tensor,
    pixels: int,
    generator: torch.Generator,
    batch: int | None = None,
    slots: slice = ALL_SLOTS,
) -> Tensor:
    """Shift every image by its own random offset; pixels from outside are 0.

    The same as a random crop after padding with ``pixels`` zeros on each side.

    Args:
        images: [b, C, H, W], any dtype.
        pixels: Largest shift up, down, left and right; >= 0. Offsets are uniform.
        generator: Source of the offsets, on the images' device.
        batch: Number B of images to draw for; null is b.
        slots: Which of the B are these b images.

    Returns:
        The shifted images, same shape and dtype.
    """
    if pixels == 0:
        return images
    here, channels, height, width = images.shape
    device = images.device
    size = (2, here if batch is None else batch)
    offsets = torch.randint(2 * pixels + 1, size, generator=generator, device=device)  # [2, B]
    offsets = offsets[:, slots]  # [2, b]
    padded = torch.nn.functional.pad(images, (pixels,) * 4)  # [b, C, H + 2p, W + 2p]
    rows = offsets[0][:, None] + torch.arange(height, device=device)  # [b, H]
    columns = offsets[1][:, None] + torch.arange(width, device=device)  # [b, W]
    return padded[
        torch.arange(here, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def random_flip(images: Tensor, generator: torch.Generator, batch: int, slots: slice) -> Tensor:
    """Mirror every image left to right with probability 1/2; see `random_shift`."""
    flipped = torch.rand(batch, generator=generator, device=images.device)[slots] < 0.5  # [b]
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def random_cutout(
    images: Tensor,
    size: int,
    fill: Tensor,
    generator: torch.Generator,
    batch: int,
    slots: slice,
) -> Tensor:
    """Blank out a square at a random place (DeVries and Taylor, arXiv 1708.04552).

    The centre is uniform over the pixels; what reaches over the border is cut off.

    Args:
        images: [b, C, H, W].
        size: Side of the square, in pixels.
        fill: The colour, [C], of the images' dtype.
        generator: Source of the places; see `random_shift` for it and the rest.
        batch: B.
        slots: Which of the B.
    """
    height, width = images.shape[2:]
    inside = []
    for length in (height, width):
        centre = torch.randint(length, (batch,), generator=generator, device=images.device)
        start = centre[slots, None] - size // 2  # [b, 1]
        pixel = torch.arange(length, device=images.device)  # [length]
        inside.append((pixel >= start) & (pixel < start + size))  # [b, length]
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # [b, 1, H, W]
    return torch.where(square, fill[:, None, None], images)
