"""Which data set has which option, and the defaults that depend on the data set.

To add a data set: see `training.config.datasets`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from training.config import DataConfig, TrainConfig
from training.config.data import AugmentName, ImbalanceType, ValidationSource
from training.config.datasets import DATASETS
from training.errors import ConfigError

DEFAULT_FACTOR = 50.0

_COMMON = (
    "imbalance_type class_order_seed validation_per_class batch_size drop_last augment cutout "
    "crop_padding shift randaugment_ops randaugment_magnitude"
).split()
# Options of one augmentation only.
_OF_AUGMENTATION: dict[str, tuple[AugmentName, ...]] = {
    "crop_padding": ("crop-flip", "autoaugment", "randaugment"),
    "randaugment_ops": ("randaugment",),
    "randaugment_magnitude": ("randaugment",),
}
# Options of images that workers decode, and of images in memory.
_OF_WORKERS = ("image_size", "resize", "color_jitter", "workers")
_OF_RESIDENT = ("crop_padding", "shift")


def resolve_options(config: TrainConfig) -> DataConfig:
    """Fill the options that are null with the data set's defaults.

    Raises:
        ConfigError: If an option is set that the data set, or the augmentation, does not have.
    """
    defaults, data = DATASETS[config.dataset], config.data
    if data.validation_per_class and data.list_val:
        raise ConfigError(
            "data.validation_per_class: expected null or 0 beside data.list_val, which is the "
            f"validation split, got {data.validation_per_class}; leave one of them out."
        )
    imbalance_type, _ = resolve_cut(config)
    cut = imbalance_type != "natural"
    validation_from: ValidationSource = "dropped" if cut and defaults.own_test else "held-out"
    resolved = replace(
        data,
        root=data.root if data.root is not None else defaults.root,
        imbalance_type=imbalance_type,
        test_per_class=data.test_per_class or defaults.test_per_class,
        validation_per_class=(
            defaults.validation_per_class
            if data.validation_per_class is None
            else data.validation_per_class
        ),
        validation_from=data.validation_from or validation_from,
        augment=data.augment or defaults.augment,
    )
    _check_unused(config, resolved)
    if "root" in defaults.options:
        _check_root(config.dataset, resolved.root)
    return resolved


def resolve_cut(config: TrainConfig) -> tuple[ImbalanceType, float | None]:
    """Return how the training images are cut, and the factor; null where they are not."""
    natural = DATASETS[config.dataset].natural and config.imbalance_factor is None
    kind = config.data.imbalance_type or ("natural" if natural else "exp")
    factor = DEFAULT_FACTOR if config.imbalance_factor is None else config.imbalance_factor
    return kind, None if kind == "natural" else factor


def _check_unused(config: TrainConfig, resolved: DataConfig) -> None:
    """An option without effect is an error, not a silent no-op."""
    has = (*_COMMON, *DATASETS[config.dataset].options)
    workers = "resident" in has and not resolved.resident
    for item in fields(DataConfig):
        name, value = item.name, getattr(config.data, item.name)
        if value == item.default:
            continue
        if name not in has:
            others = [d for d, o in DATASETS.items() if name in o.options]
            _unused(name, value, item.default, f"--dataset {config.dataset}", " or ".join(others))
        if name in _OF_AUGMENTATION and resolved.augment not in _OF_AUGMENTATION[name]:
            wanted = " or ".join(f"--data.augment {a}" for a in _OF_AUGMENTATION[name])
            _unused(name, value, item.default, f"--data.augment {resolved.augment}", wanted)
        if name in _OF_WORKERS and not workers:
            _unused(name, value, item.default, "--data.resident true", "--data.resident false")
        if name in _OF_RESIDENT and workers:
            _unused(name, value, item.default, "--data.resident false", "--data.resident true")
    if workers and resolved.augment == "shift":
        raise ConfigError(
            "data.augment: expected none, crop-flip, autoaugment or randaugment for files that are "
            "decoded in workers, got shift; or use --data.resident true."
        )
    if resolved.imbalance_type == "natural":
        _check_natural(config, resolved)


def _check_natural(config: TrainConfig, resolved: DataConfig) -> None:
    if resolved.class_order_seed is not None:
        raise ConfigError(
            "data.class_order_seed: expected null with imbalance_type natural, where no class is "
            f"cut, got {resolved.class_order_seed}; leave it out, or cut with exp or step."
        )
    if config.imbalance_factor is not None:
        raise ConfigError(
            "imbalance_factor: expected null with data.imbalance_type natural, which cuts nothing, "
            f"got {config.imbalance_factor}; leave one of them out."
        )
    if resolved.validation_from == "dropped":
        raise ConfigError(
            "data.validation_from: expected held-out with imbalance_type natural, which drops no "
            "images, got dropped."
        )


def _unused(name: str, value: object, default: object, chosen: str, remedy: str) -> None:
    raise ConfigError(
        f"data.{name}: expected the default {default!r} with {chosen}, where it has no effect, got "
        f"{value!r}; use {remedy or 'another data set'}, or leave the option out."
    )


def _check_root(dataset: str, root: str | None) -> None:
    if root is None:
        raise ConfigError(
            f"data.root: expected the folder of the files of {dataset}, got none; "
            "pass --data.root FOLDER."
        )
    if not Path(root).is_dir():
        hint = (
            "; install Debian's package dataset-fashion-mnist, or pass --data.root FOLDER"
            if dataset == "fashion-mnist-lt"
            else "; check --data.root"
        )
        raise ConfigError(f"data.root: expected a folder, got {root!r}, which is none{hint}.")
