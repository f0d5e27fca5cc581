"""Crop, flip and cutout; and that a rank's share is augmented as the whole batch is."""

from __future__ import annotations

import pytest
import torch

from training.config.data import DataConfig
from training.data.augment import Augmentation, random_cutout, random_flip

_AUGMENTATIONS = ("none", "shift", "crop-flip", "autoaugment", "randaugment")


def noise(batch: int = 12, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, 256, (batch, channels, 16, 12), generator=generator, dtype=torch.uint8)


def augmentation(name: str, **options) -> Augmentation:
    options = {"crop_padding": 4, **options}
    return Augmentation(DataConfig(augment=name, **options), torch.tensor([7, 8, 9]).byte())


@pytest.mark.parametrize("cutout", [0, 5])
@pytest.mark.parametrize("name", _AUGMENTATIONS)
@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_together_have_what_one_process_has(name, cutout, world_size):
    images, augment = noise(), augmentation(name, cutout=cutout)
    whole = augment(images, (3, 1, 0), 12)
    parts = torch.empty_like(whole)
    for rank in range(world_size):
        slots = slice(rank, None, world_size)
        parts[slots] = augment(images[slots], (3, 1, 0), 12, slots)
    assert torch.equal(whole, parts)
    assert torch.equal(whole, images) == (name == "none" and cutout == 0)
    assert whole.dtype == torch.uint8


@pytest.mark.parametrize("name", _AUGMENTATIONS[1:])
def test_seed_epoch_and_batch_each_change_the_result(name):
    augment = augmentation(name)
    results = [augment(noise(), entropy, 12) for entropy in ((0, 1, 0), (1, 1, 0), (0, 2, 0))]
    results.append(augment(noise(), (0, 1, 1), 12))
    for i, first in enumerate(results):
        for second in results[:i]:
            assert not torch.equal(first, second)


def test_crop_and_flip_give_every_window_of_the_padded_image():
    image = noise(1, 3)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0]
    windows = set()
    for top in range(3):
        for left in range(3):
            window = padded[:, top : top + 16, left : left + 12]
            windows.update({window.numpy().tobytes(), window.flip(2).numpy().tobytes()})
    result = augmentation("crop-flip", crop_padding=1)(image.expand(400, -1, -1, -1), (0,), 400)
    assert {one.numpy().tobytes() for one in result} == windows


def test_half_of_the_images_are_flipped():
    images = noise(2000)
    flipped = random_flip(images, torch.Generator().manual_seed(0), 2000, slice(None))
    same = (flipped == images).flatten(1).all(1)
    assert torch.equal(flipped[~same], images[~same].flip(3))
    assert 0.45 < same.float().mean() < 0.55


def test_cutout_is_a_square_of_the_fill_cut_at_the_border():
    images = noise(3000)
    fill = torch.zeros(3, dtype=torch.uint8)  # no pixel of the images is 0
    result = random_cutout(images, 4, fill, torch.Generator().manual_seed(0), 3000, slice(None))
    out = (result == 0).all(1)  # [B, H, W]
    assert torch.equal(result, images.masked_fill(out[:, None], 0))
    rows, columns = out.any(2).sum(1), out.any(1).sum(1)
    assert torch.equal(out.flatten(1).sum(1), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == 4
    assert rows.min() == columns.min() == 2  # centre on the first row: rows -2 .. 1
    # The centre is uniform: of 16 places 3 reach over a border (0 and 1 above, 15 below).
    assert (rows == 4).float().mean().item() == pytest.approx(13 / 16, abs=0.03)
    assert out.float().mean(0).std() < 0.03


def test_cutout_leaves_the_mean_pixel():
    result = augmentation("none", cutout=40)(noise(), (0,), 12)
    assert torch.equal(result, torch.tensor([7, 8, 9]).byte()[:, None, None].expand(12, -1, 16, 12))


def test_files_are_not_cropped_twice():
    options = DataConfig(augment="crop-flip")
    augment = Augmentation(options, torch.zeros(3).byte(), crop=False)
    assert torch.equal(augment(noise(), (0,), 12), noise())
