"""AutoAugment and RandAugment on batches of uint8 images, an operation per image, with kornia.

kornia's own AutoAugment draws one sub-policy for a whole batch, from torch's global generator. Here
every image has its own, drawn from a generator that is passed in; kornia does the image operations.
Magnitudes are those of the papers (Cubuk et al., "AutoAugment", CVPR 2019, tables 6 and 7;
"RandAugment", CVPR workshops 2020): they are levels of a range, 10 levels for AutoAugment, 31 for
RandAugment. Sampling is nearest-neighbour and what comes from outside is 0, as in their code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia import enhance
from kornia.geometry import transform
from torch import Tensor

_LEVELS = 10
_RAND_LEVELS = 31
_NO_OP = -1


@dataclass(frozen=True)
class Chosen:
    """What is done to each of B images, L operations one after the other.

    Attributes:
        operations: int64 [B, L], positions in `NAMES`, -1 for nothing; on the CPU.
        strength: Fraction of the operation's range, in [-1, 1] with its sign, float32 [B, L].
    """

    operations: Tensor
    strength: Tensor

    def take(self, slots: slice) -> Chosen:
        """Return the choice of some of the images."""
        return Chosen(self.operations[slots], self.strength[slots])


def draw_autoaugment(batch: int, generator: torch.Generator) -> Chosen:
    """Draw one of the 25 sub-policies for CIFAR-10 for each image, and what it does."""
    policy = torch.randint(len(CIFAR10_POLICY), (batch,), generator=generator)
    chance = torch.rand(batch, 2, generator=generator)
    operations = torch.tensor([[NAMES.index(n) for n, _, _ in pair] for pair in CIFAR10_POLICY])
    probability = torch.tensor([[p for _, p, _ in pair] for pair in CIFAR10_POLICY])
    level = torch.tensor([[float(m or 0) for _, _, m in pair] for pair in CIFAR10_POLICY])
    chosen = operations[policy].masked_fill(chance >= probability[policy], _NO_OP)  # [B, 2]
    return Chosen(chosen, level[policy] / (_LEVELS - 1) * _signs((batch, 2), generator))


def draw_randaugment(batch: int, ops: int, magnitude: int, generator: torch.Generator) -> Chosen:
    """Draw ``ops`` operations for each image, uniformly with "identity", all of one magnitude.

    Args:
        batch: Number B of images.
        ops: Operations per image.
        magnitude: Level in [0, 30].
        generator: Source of the choice, on the CPU.
    """
    candidates = torch.tensor([_NO_OP, *(NAMES.index(name) for name in _RANDAUGMENT)])
    position = torch.randint(len(candidates), (batch, ops), generator=generator)
    strength = magnitude / (_RAND_LEVELS - 1) * _signs((batch, ops), generator)
    return Chosen(candidates[position], strength)


def apply(images: Tensor, chosen: Chosen) -> Tensor:
    """Do to each image what was drawn for it.

    Args:
        images: uint8 [B, C, H, W]; C is 1 or 3.
        chosen: For B images.

    Returns:
        uint8 [B, C, H, W], a new tensor.
    """
    images = images.clone()
    for step in range(chosen.operations.shape[1]):
        operations = chosen.operations[:, step]
        for number in operations.unique().tolist():
            if number == _NO_OP:
                continue
            where = (operations == number).nonzero().flatten()  # [b]
            strength = chosen.strength[where, step].to(images.device)
            where = where.to(images.device)
            images[where] = _OPERATIONS[NAMES[number]](images[where], strength)
    return images


def _signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator) - 1.0


# Each takes uint8 [b, C, H, W] and the strength in [-1, 1], float32 [b], and returns uint8.


def _float(images: Tensor) -> Tensor:
    return images.float() / 255


def _uint8(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _pair(first: Tensor, horizontal: bool) -> Tensor:
    zero = torch.zeros_like(first)
    return torch.stack([first, zero] if horizontal else [zero, first], dim=1)  # [b, 2]


def _shear(images: Tensor, strength: Tensor, horizontal: bool) -> Tensor:
    """Shear by up to 0.3 around the top left corner."""
    amount = _pair(0.3 * strength, horizontal)
    return _uint8(transform.shear(_float(images), amount, mode="nearest"))


def _translate(images: Tensor, strength: Tensor, horizontal: bool) -> Tensor:
    """Move by up to 150 / 331 of the side (the papers' 150 pixels, of images of 331)."""
    side = images.shape[3 if horizontal else 2]
    amount = _pair((150 / 331 * side * strength).round(), horizontal)
    return _uint8(transform.translate(_float(images), amount, mode="nearest"))


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    return _uint8(transform.rotate(_float(images), 30 * strength, mode="nearest"))


def _invert(images: Tensor, strength: Tensor) -> Tensor:
    return 255 - images


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the values from a threshold on, 256 (none of them) for strength 0 and 0 for 1."""
    threshold = 256 * (1 - strength.abs())[:, None, None, None]
    return torch.where(images >= threshold, 255 - images, images)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep 8 bits for strength 0, 4 for 1."""
    bits = 8 - (4 * strength.abs()).round().to(torch.int64)  # [b]
    mask = (256 - 2 ** (8 - bits)).to(torch.uint8)[:, None, None, None]
    return images & mask


def _auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch every channel to 0 .. 255; a constant one stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = (high - low).float()
    stretched = ((images - low).float() * 255 / span.clamp_min(1)).floor().to(torch.uint8)
    return torch.where(span == 0, images, stretched)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    return _uint8(enhance.equalize(_float(images)))


def _enhance(
    images: Tensor, strength: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Change by a factor of 0.1 to 1.9 (1 + 0.9 * strength); 1 is the image as it is."""
    return _uint8(function(_float(images), 1 + 0.9 * strength))


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image, as pillow does."""
    grey = images if images.shape[1] == 1 else _grey(images)
    mean = grey.mean((1, 2, 3), keepdim=True)
    return (mean + factor[:, None, None, None] * (images - mean)).clamp(0, 1)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image, as pillow does; a grey image has no colour to change."""
    if images.shape[1] == 1:
        return images
    grey = _grey(images)
    return (grey + factor[:, None, None, None] * (images - grey)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601-2, [b, 1, H, W]."""
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(1, keepdim=True)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear_x": lambda x, s: _shear(x, s, True),
    "shear_y": lambda x, s: _shear(x, s, False),
    "translate_x": lambda x, s: _translate(x, s, True),
    "translate_y": lambda x, s: _translate(x, s, False),
    "rotate": _rotate,
    "brightness": lambda x, s: _enhance(x, s, enhance.adjust_brightness_accumulative),
    "color": lambda x, s: _enhance(x, s, _color),
    "contrast": lambda x, s: _enhance(x, s, _contrast),
    "sharpness": lambda x, s: _enhance(x, s, enhance.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
}
NAMES = tuple(_OPERATIONS)
_RANDAUGMENT = tuple(name for name in NAMES if name != "invert")

# Cubuk et al., "AutoAugment", table 7: operation, probability, level.
CIFAR10_POLICY: tuple[tuple[tuple[str, float, int | None], ...], ...] = (
    (("invert", 0.1, None), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, None), ("equalize", 0.9, None)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, None), ("equalize", 0.5, None)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, None), ("auto_contrast", 0.4, None)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, None)),
    (("equalize", 0.2, None), ("auto_contrast", 0.6, None)),
    (("equalize", 0.2, None), ("equalize", 0.6, None)),
    (("color", 0.9, 9), ("equalize", 0.6, None)),
    (("auto_contrast", 0.8, None), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, None)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, None), ("solarize", 0.8, 3)),
    (("equalize", 0.8, None), ("invert", 0.1, None)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, None)),
)
