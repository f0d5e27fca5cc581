"""Every data set: which options it has, and its defaults.

To add a data set: a line in ``DATASETS``, its loader in ``_LOADERS`` of `training.data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.config.data import AugmentName

FILES = "resident image_size resize color_jitter workers".split()


@dataclass(frozen=True)
class Defaults:
    """The options that a data set has besides the common ones, and its defaults."""

    options: tuple[str, ...] = ()
    validation_per_class: int = 10
    test_per_class: int = 0
    augment: AugmentName = "crop-flip"
    root: str = ""
    natural: bool = False
    own_test: bool = True


DATASETS: dict[str, Defaults] = {
    "digits-lt": Defaults(
        options=("test_per_class",), test_per_class=40, augment="shift", own_test=False
    ),
    "fashion-mnist-lt": Defaults(
        options=("root", "verify_md5", "validation_from"),
        validation_per_class=100,
        root="/usr/share/datasets/fashion-mnist",
    ),
    "cifar10-lt": Defaults(
        options=("root", "verify_md5", "validation_from"), validation_per_class=100
    ),
    "cifar100-lt": Defaults(options=("root", "verify_md5", "validation_from")),
    "image-folder": Defaults(
        # What is held out where there are no folders of its own: the loader looks.
        options=("root", "test_per_class", "validation_from", *FILES),
        test_per_class=50,
        natural=True,
    ),
    "list-files": Defaults(
        options=("root", "verify_md5", "list_train", "list_val", "list_test", *FILES),
        validation_per_class=0,
        natural=True,
    ),
}
if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = Literal[tuple(DATASETS)]
