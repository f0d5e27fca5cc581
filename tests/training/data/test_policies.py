"""AutoAugment and RandAugment, against pillow's operations and kornia's table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from training.data import policies
from training.data.policies import NAMES, Chosen


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth colour images, uint8 [6, 3, 32, 24], of small and of full contrast."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (32, 24), mode="bicubic").clamp(0, 1)
    fine[0] = 0.3 + 0.3 * fine[0]
    fine[1] = 0.5  # constant
    return (fine * 255).round().byte()


def pillow(images: torch.Tensor, function) -> torch.Tensor:
    results = [function(Image.fromarray(im.permute(1, 2, 0).numpy())) for im in images]
    return torch.stack([torch.from_numpy(np.array(im)).permute(2, 0, 1) for im in results])


def ours(images: torch.Tensor, name: str, strength: float) -> torch.Tensor:
    operations = torch.full((len(images), 1), NAMES.index(name))
    return policies.apply(images, Chosen(operations, torch.full((len(images), 1), strength)))


def affine(*coefficients):
    return lambda im: im.transform(im.size, Image.Transform.AFFINE, coefficients)


# Which pillow call is meant by a strength s; how far a value may be off (roundings of pillow's).
_POINTWISE = {
    "invert": (lambda s: ImageOps.invert, 0),
    "solarize": (lambda s: lambda im: ImageOps.solarize(im, 256 * (1 - s)), 0),
    "posterize": (lambda s: lambda im: ImageOps.posterize(im, 8 - round(4 * s)), 0),
    "auto_contrast": (lambda s: ImageOps.autocontrast, 1),
    "brightness": (lambda s: lambda im: ImageEnhance.Brightness(im).enhance(1 + 0.9 * s), 1),
    "contrast": (lambda s: lambda im: ImageEnhance.Contrast(im).enhance(1 + 0.9 * s), 2),
    "color": (lambda s: lambda im: ImageEnhance.Color(im).enhance(1 + 0.9 * s), 2),
    "sharpness": (lambda s: lambda im: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * s), 2),
}


@pytest.mark.parametrize("strength", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("name", _POINTWISE)
def test_values_are_pillows(images, name, strength):
    function, tolerance = _POINTWISE[name]
    result = ours(images, name, strength)
    expected = pillow(images, function(strength))
    assert (result.int() - expected.int()).abs().max() <= tolerance
    assert not torch.equal(result[3], images[3])


def test_equalize_flattens_the_histogram_as_pillow_does(images):
    result, expected = ours(images, "equalize", 0.0), pillow(images, ImageOps.equalize)
    assert (result.int() - expected.int()).abs().max() <= 2
    assert result[0].float().std() > 1.5 * images[0].float().std()


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("shear_x", lambda s, w, h: affine(1, -0.3 * s, 0, 0, 1, 0)),
        ("shear_y", lambda s, w, h: affine(1, 0, 0, -0.3 * s, 1, 0)),
        ("translate_x", lambda s, w, h: affine(1, 0, -round(150 / 331 * w * s), 0, 1, 0)),
        ("translate_y", lambda s, w, h: affine(1, 0, 0, 0, 1, -round(150 / 331 * h * s))),
        ("rotate", lambda s, w, h: lambda im: im.rotate(30 * s)),
    ],
)
def test_places_are_pillows(images, name, call, strength):
    expected = pillow(images[2:], call(strength, 24, 32))
    result = ours(images[2:], name, strength)
    # Pillow's pixels are squares and kornia's are points: a nearest neighbour may be the next one.
    close = ((result.int() - expected.int()).abs().amax(1) <= 16).float().mean()
    assert close > 0.9
    assert not torch.equal(result, images[2:])


def test_the_policy_is_the_published_one():
    from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy

    assert [list(pair) for pair in policies.CIFAR10_POLICY] == cifar10_policy


def test_every_image_has_its_own_operation_and_the_others_are_untouched(images):
    operations = torch.tensor([[NAMES.index("invert")], [-1], [NAMES.index("posterize")]] * 2)
    result = policies.apply(images, Chosen(operations, torch.ones(6, 1)))
    assert torch.equal(result[[1, 4]], images[[1, 4]])
    assert torch.equal(result[[0, 3]], 255 - images[[0, 3]])
    assert torch.equal(result[[2, 5]], images[[2, 5]] & 0b11110000)


def test_operations_are_done_in_order(images):
    invert, solarize = NAMES.index("invert"), NAMES.index("solarize")
    strength = torch.full((6, 2), 0.6)
    results = [
        policies.apply(images, Chosen(torch.tensor([order] * 6), strength))
        for order in ([invert, solarize], [solarize, invert])
    ]
    assert torch.equal(results[0], ours(ours(images, "invert", 0.6), "solarize", 0.6))
    assert not torch.equal(*results)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"invert", "auto_contrast", "equalize"}))
def test_no_strength_changes_nothing(images, name):
    images = images.clone()
    images[0, :, 0, 0], images[0, :, 0, 1] = 255, 0
    assert torch.equal(ours(images, name, 0.0), images)


def test_grey_images(images):
    for name in NAMES:
        assert ours(images[:, :1], name, 0.7).shape == (6, 1, 32, 24)
    assert torch.equal(ours(images[:, :1], "color", 1.0), images[:, :1])


def test_frequencies_of_autoaugment():
    chosen = policies.draw_autoaugment(50_000, torch.Generator().manual_seed(0))
    counts = {name: (chosen.operations == k).sum().item() / 50_000 for k, name in enumerate(NAMES)}
    for name in NAMES:
        expected = sum(p for pair in policies.CIFAR10_POLICY for n, p, _ in pair if n == name) / 25
        assert counts[name] == pytest.approx(expected, abs=0.01), name
    # Only "rotate" of level 2 and translations of level 9 have these names: levels come along.
    rotations = chosen.strength[chosen.operations == NAMES.index("rotate")]
    assert rotations.abs().unique().tolist() == pytest.approx([2 / 9])
    assert rotations.sign().mean().abs() < 0.1


def test_frequencies_of_randaugment():
    chosen = policies.draw_randaugment(20_000, 2, 15, torch.Generator().manual_seed(0))
    assert chosen.strength.abs().unique().tolist() == [0.5]
    shares = torch.bincount((chosen.operations + 1).flatten(), minlength=15)[:14] / 40_000
    assert shares.tolist() == pytest.approx([1 / 14] * 14, abs=0.006)
    assert not (chosen.operations == NAMES.index("invert")).any()


@pytest.mark.parametrize("draw", ["autoaugment", "randaugment"])
def test_only_the_generator_decides(images, draw):
    def augmented(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if draw == "autoaugment":
            return policies.apply(images, policies.draw_autoaugment(6, generator))
        return policies.apply(images, policies.draw_randaugment(6, 2, 10, generator))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augmented(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, augmented(3))
    assert not torch.equal(first, augmented(4))
