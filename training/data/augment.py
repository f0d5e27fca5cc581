"""Augmentation of small images as batched tensor code on the device that holds them."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift every image by its own random offset; pixels from outside are 0.

    Args:
        images: [B, C, H, W], any dtype.
        pixels: Largest shift up, down, left and right; >= 0. Offsets are uniform.
        generator: Source of the offsets, on the images' device.

    Returns:
        The shifted images, same shape and dtype.
    """
    if pixels == 0:
        return images
    batch, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(2 * pixels + 1, (2, batch), generator=generator, device=device)  # [2,B]
    padded = torch.nn.functional.pad(images, (pixels,) * 4)  # [B, C, H + 2p, W + 2p]
    rows = offsets[0][:, None] + torch.arange(height, device=device)  # [B, H]
    columns = offsets[1][:, None] + torch.arange(width, device=device)  # [B, W]
    return padded[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
