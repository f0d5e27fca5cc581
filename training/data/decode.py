"""Decoding image files, with the crops of ImageNet-size training, in pillow.

Random values come from a generator that the caller makes from (seed, epoch, batch, slot), so an
image of a batch looks the same in every worker, on every rank, and after a resumed run.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, TiffImagePlugin
from torch import Tensor

from training.config import DataConfig
from training.errors import ConfigError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Broken EXIF blocks, palettes with transparency: the pixels are read all the same. (Not with
# catch_warnings around each image: it is not safe in threads.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def open_image(path: str) -> Image.Image:
    """Decode a file to RGB; of 12 or 16 bits a value, the upper 8 are taken.

    Raises:
        ConfigError: If the file is missing, truncated or no image, or its values have no known
            range, with its name.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # as pillow reads 16-bit colours; convert would clip
                return _upper_bits(image)
            if image.mode not in ("I", "F"):
                return image.convert("RGB")
            kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: expected an image file, found none; check --data.root and the list."
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        size = Path(path).stat().st_size if Path(path).exists() else 0
        raise ConfigError(
            f"{path}: expected an image that can be decoded, got a truncated or corrupt file of "
            f"{size} bytes ({error}); fetch it again or remove it, then check the others with: "
            "python -m training data verify"
        ) from error
    raise ConfigError(
        f"{path}: expected 8 or 16 bits a value, got {kind}, whose black and white nobody knows; "
        "scale them to 0 .. 255 and save the image with 8 bits."
    )


def _upper_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or a TIFF of 12, which pillow reads as numbers up to 4095 -> RGB."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)  # [H, W]
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        values = 255 - values  # 0 is white, which pillow heeds in 8 bits only
    return Image.fromarray(values).convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def training_image(
    image: Image.Image, data: DataConfig, rng: np.random.Generator, augmented: bool
) -> Tensor:
    """Random resized crop, horizontal flip and colour jitter -> uint8 [3, S, S].

    Args:
        image: RGB.
        data: Sizes and strength.
        rng: Source of the random values.
        augmented: False gives the evaluation's crop.
    """
    if not augmented:
        return evaluation_image(image, data)
    box = random_crop_box(*image.size, rng)
    size = (data.image_size, data.image_size)
    crop = image.resize(size, Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if data.color_jitter > 0:
        crop = color_jitter(crop, data.color_jitter, rng)
    return to_tensor(crop)


def evaluation_image(image: Image.Image, data: DataConfig) -> Tensor:
    """Resize the shorter side, then cut out the centre -> uint8 [3, S, S]."""
    width, height = image.size
    scale = data.resize / min(width, height)
    resized = image.resize(
        (max(data.resize, round(width * scale)), max(data.resize, round(height * scale))),
        Image.Resampling.BILINEAR,
    )
    left = (resized.width - data.image_size) // 2
    top = (resized.height - data.image_size) // 2
    return to_tensor(resized.crop((left, top, left + data.image_size, top + data.image_size)))


def random_crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3.

    The "Inception" crop (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015): the area is
    uniform, the logarithm of the ratio is uniform; a box that does not fit is drawn again, and
    after ten times the largest centred box of an allowed ratio is taken.

    Returns:
        Left, top, right, bottom in pixels, inside the image.

    Example:
        >>> random_crop_box(100, 100, np.random.default_rng(0))
        (7, 0, 83, 87)
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * _RATIO[1]))
    h = min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Scale brightness, contrast and saturation by random factors in 1 +- strength, random order.

    Contrast is around the mean grey of the image, saturation towards its grey version.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(1 - strength, 1 + strength, len(kinds))
    for position in rng.permutation(len(kinds)):
        image = kinds[position](image).enhance(float(factors[position]))
    return image
