"""How the data set is found, cut to a long tail, split, augmented and fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.config.checks import check

ImbalanceType = Literal["exp", "step", "natural"]
ValidationSource = Literal["dropped", "held-out"]
AugmentName = Literal["none", "shift", "crop-flip", "autoaugment", "randaugment"]


@dataclass
class DataConfig:
    """How the data set is found, split and fed; null is the data set's own default.

    An option that the chosen data set does not have must stay unset
    (`training.data.options` lists who has what).

    Attributes:
        root: Folder of the files. fashion-mnist-lt: /usr/share/datasets/fashion-mnist (Debian's
            package dataset-fashion-mnist); glyphs-lt: .data/glyphs
            (`python -m training.data.make_glyphs`); cifar10-jpeg-lt: .data/cifar10-jpeg;
            cifar10-lt, cifar100-lt, image-folder, list-files: must be given.
        list_train: Text file of "path label" lines, path relative to root. (list-files)
        list_val: The same for validation; null holds validation_per_class images per class out of
            the training list. (list-files)
        list_test: The same for the test. (list-files)
        verify_md5: Compare files with the checksums of the published ones (md5; lists: git blob
            ids). true: a difference is an error. false: no comparison. auto: a difference is an
            error in a file that has as many images as the published one; a file with another number
            cannot be it, and is used with a warning. (fashion-mnist-lt, cifar10-lt, cifar100-lt,
            list-files)
        imbalance_type: exp (exponential decay) or step (half of the classes full, half rare), as
            Cao et al. cut them, or natural (no cut). null is exp, but natural for image-folder and
            list-files without an imbalance_factor.
        class_order_seed: Seed of a random order of the classes, most frequent first; null is the
            order of the labels. Not with natural.
        label_noise: Share of the training images whose label is that of another class, drawn with
            the classes' frequencies, so that rare classes are not flooded (Wei et al., "Robust
            Long-Tailed Learning under Label Noise", 2108.11569); in [0, 1).
        test_per_class: Images per class held out for the balanced test split; >= 1. null is 40 for
            digits-lt, 50 for an image-folder without a test folder; others bring a test split.
        validation_per_class: Images per class for model selection; >= 0, 0 is no validation split.
            null is 100 for fashion-mnist-lt, cifar10-lt and cifar10-jpeg-lt; 10 for digits-lt,
            glyphs-lt, cifar100-lt and image-folder; 0 for list-files.
        validation_from: dropped takes the validation images from those that the long-tail cut
            drops: the training split stays the published one to the last image, but a class of
            which fewer are dropped has fewer, the most frequent one none. held-out takes them from
            all training images before the cut, so that n_max is smaller by validation_per_class.
            null is dropped where the test split is given and there is a cut, else held-out.
        batch_size: Images per training batch; >= 2.
        drop_last: Leave out an epoch's last batch if it is smaller than batch_size. Otherwise it is
            used, but a last batch of one image joins the batch before (whitening needs two rows).
        augment: none; shift; crop-flip (random crop after padding, or for files a random resized
            crop, and a horizontal flip); autoaugment (crop-flip, then the CIFAR-10 policy);
            randaugment (crop-flip, then RandAugment). null is shift for digits-lt and glyphs-lt,
            else crop-flip.
        shift: Largest random shift, in pixels; 0 is none. (augment shift)
        crop_padding: Padding of the random crop on each side, in pixels; >= 0. (augment crop-flip,
            autoaugment, randaugment; images resident on the device)
        cutout: Side of the square that is blanked out, in pixels; 0 is none.
        randaugment_ops: Operations per image; >= 1. (augment randaugment)
        randaugment_magnitude: Strength of each, in [0, 30]. (augment randaugment)
        resident: Decode all images once and keep them on the training device; they must have one
            size. For images of up to about 64 pixels. (image-folder, list-files)
        image_size: Side of the square that the network sees, in pixels; >= 8. (files in workers)
        resize: Shorter side before the test's centre crop, in pixels; >= image_size. (files in
            workers)
        color_jitter: Range of the random factors 1 +- c of brightness, contrast and saturation; in
            [0, 1]. The published recipes use 0.4 for ImageNet-LT, 0 for iNaturalist. (files in
            workers)
        pixel_statistics: Mean and deviation that pixels are normalised by: those of ImageNet, or of
            iNaturalist 2018 as in the code of Kang et al. (files in workers)
        workers: Processes that decode; >= 0 (0 decodes in the training process), null is the number
            of cores, at most 8. (files in workers)
    """

    root: str | None = None
    list_train: str | None = None
    list_val: str | None = None
    list_test: str | None = None
    verify_md5: bool | Literal["auto"] = "auto"
    imbalance_type: ImbalanceType | None = None
    class_order_seed: int | None = None
    label_noise: float = 0.0
    test_per_class: int | None = None
    validation_per_class: int | None = None
    validation_from: ValidationSource | None = None
    batch_size: int = 128
    drop_last: bool = True
    augment: AugmentName | None = None
    shift: int = 1
    crop_padding: int = 4
    cutout: int = 0
    randaugment_ops: int = 2
    randaugment_magnitude: int = 10
    resident: bool = False
    image_size: int = 224
    resize: int = 256
    color_jitter: float = 0.0
    pixel_statistics: Literal["imagenet", "inaturalist"] = "imagenet"
    workers: int | None = None


def check_data(data: DataConfig) -> None:
    """Check the ranges."""

    def at_least(name: str, least: int, unit: str = "") -> None:
        value = getattr(data, name)
        check(f"data.{name}", value, value is None or value >= least, f">= {least}{unit}")

    at_least("class_order_seed", 0)
    check("data.label_noise", data.label_noise, 0 <= data.label_noise < 1, "in [0, 1)")
    at_least("test_per_class", 1)
    at_least("validation_per_class", 0)
    at_least("batch_size", 2)
    at_least("shift", 0, " pixels")
    at_least("crop_padding", 0, " pixels")
    at_least("cutout", 0, " pixels")
    at_least("randaugment_ops", 1)
    at_least("image_size", 8, " pixels")
    at_least("workers", 0)
    magnitude = data.randaugment_magnitude
    check("data.randaugment_magnitude", magnitude, 0 <= magnitude <= 30, "in [0, 30]")
    check(
        "data.resize",
        data.resize,
        data.resize >= data.image_size,
        f">= data.image_size={data.image_size} pixels",
    )
    check("data.color_jitter", data.color_jitter, 0 <= data.color_jitter <= 1, "in [0, 1]")
