"""Which data set has which option, and the defaults that depend on the data set.

To add a data set: see `training.config.datasets`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.config import DataConfig, TrainConfig
from training.config.checks import check_unused
from training.config.data import AugmentName, ImbalanceType, ValidationSource
from training.config.datasets import DATASETS
from training.data.longtail import Cut
from training.errors import ConfigError

DEFAULT_FACTOR = 50.0

_COMMON = (
    "imbalance_type class_order_seed label_noise validation_per_class batch_size drop_last augment "
    "cutout crop_padding shift randaugment_ops randaugment_magnitude"
).split()
# Options of one augmentation only.
_OF_AUGMENTATION: dict[str, tuple[AugmentName, ...]] = {
    "crop_padding": ("crop-flip", "autoaugment", "randaugment"),
    "randaugment_ops": ("randaugment",),
    "randaugment_magnitude": ("randaugment",),
}
# Options of images that workers decode, and of images in memory.
_OF_WORKERS = ("image_size", "resize", "color_jitter", "pixel_statistics", "workers")
_OF_RESIDENT = ("crop_padding", "shift")
_MAX_WORKERS = 8


@dataclass(kw_only=True)
class ResolvedData(DataConfig):
    """The options of a data set where null has become the data set's own default.

    Attributes:
        given: The options as they came.
        imbalance_factor: Of the long-tail cut; null where nothing is cut.
    """

    given: DataConfig
    imbalance_factor: float | None
    root: str  # empty where there are no files
    imbalance_type: ImbalanceType
    test_per_class: int  # 0 where the data set has a test split of its own
    validation_per_class: int
    validation_from: ValidationSource
    augment: AugmentName
    workers: int

    @property
    def cut(self) -> Cut:
        """The long-tail cut."""
        return Cut(self.imbalance_factor or 1.0, self.imbalance_type, self.class_order_seed)


def resolve_options(config: TrainConfig) -> ResolvedData:
    """Fill the options that are null with the data set's defaults.

    Raises:
        ConfigError: If an option is set that the data set, or the augmentation, does not have.
    """
    defaults, data = DATASETS[config.dataset], config.data
    if data.list_val:
        where = "beside data.list_val, which is the validation split"
        count = data.validation_per_class or None
        check_unused("data.validation_per_class", count, None, where, "no data.list_val")
    imbalance_type, factor = resolve_cut(config)
    cut = imbalance_type != "natural"
    own = {
        "root": defaults.root,
        "imbalance_type": imbalance_type,
        "test_per_class": defaults.test_per_class,
        "validation_per_class": defaults.validation_per_class,
        "validation_from": "dropped" if cut and defaults.own_test else "held-out",
        "augment": defaults.augment,
        "workers": min(_MAX_WORKERS, os.cpu_count() or 1),
    }
    options: dict[str, Any] = dict(vars(data))
    options.update({name: value for name, value in own.items() if options[name] is None})
    resolved = ResolvedData(**options, given=data, imbalance_factor=factor)
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


def _check_unused(config: TrainConfig, resolved: ResolvedData) -> None:
    """An option without effect is an error, not a silent no-op."""
    has = (*_COMMON, *DATASETS[config.dataset].options)
    workers = "resident" in has and not resolved.resident
    for item in fields(DataConfig):
        name, chosen = item.name, None
        if name not in has:
            chosen = f"--dataset {config.dataset}"
            instead = " or ".join(d for d, o in DATASETS.items() if name in o.options)
        elif name in _OF_AUGMENTATION and resolved.augment not in _OF_AUGMENTATION[name]:
            chosen = f"--data.augment {resolved.augment}"
            instead = " or ".join(f"--data.augment {a}" for a in _OF_AUGMENTATION[name])
        elif name in (_OF_RESIDENT if workers else _OF_WORKERS):
            flags = ("--data.resident true", "--data.resident false")
            instead, chosen = flags if workers else flags[::-1]
        if chosen:
            where, value = f"with {chosen}, where it has no effect", getattr(config.data, name)
            check_unused(f"data.{name}", value, item.default, where, instead)
    if workers and resolved.augment == "shift":
        raise ConfigError(
            "data.augment: expected none, crop-flip, autoaugment or randaugment for files that are "
            "decoded in workers, got shift; or use --data.resident true."
        )
    if resolved.imbalance_type == "natural":
        _check_natural(config, resolved)


def _check_natural(config: TrainConfig, resolved: ResolvedData) -> None:
    where, instead = "with data.imbalance_type natural, which cuts nothing", "exp or step"
    check_unused("data.class_order_seed", resolved.class_order_seed, None, where, instead)
    check_unused("imbalance_factor", config.imbalance_factor, None, where, instead)
    if resolved.validation_from == "dropped":
        raise ConfigError(
            "data.validation_from: expected held-out with imbalance_type natural, which drops no "
            "images, got dropped."
        )


def _check_root(dataset: str, root: str) -> None:
    if not root:
        raise ConfigError(
            f"data.root: expected the folder of the files of {dataset}, got none; "
            "pass --data.root FOLDER."
        )
    if not Path(root).is_dir():
        raise ConfigError(
            f"data.root: expected a folder, got {root!r}, which is none; {DATASETS[dataset].files}."
        )
