"""Every data set: which options it has, and its defaults.

To add a data set: a line in ``DATASETS``, its loader in ``_LOADERS`` of `training.data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.config.data import AugmentName

FILES = "resident image_size resize color_jitter pixel_statistics workers".split()


@dataclass(frozen=True)
class Defaults:
    """The options that a data set has besides the common ones, and its defaults.

    Attributes:
        options: Names in `DataConfig`.
        title: What tables of results call it; empty is its name.
        files: How to get the files, where the root is not there.
        natural: Whether it is long-tailed as it is: not cut without an imbalance_factor.
        own_test: Whether it brings a test split.
    """

    options: tuple[str, ...] = ()
    validation_per_class: int = 10
    test_per_class: int = 0
    augment: AugmentName = "crop-flip"
    root: str = ""
    natural: bool = False
    own_test: bool = True
    title: str = ""
    files: str = "check --data.root"


DATASETS: dict[str, Defaults] = {
    "digits-lt": Defaults(
        options=("test_per_class",), test_per_class=40, augment="shift", own_test=False
    ),
    "fashion-mnist-lt": Defaults(
        options=("root", "verify_md5", "validation_from"),
        validation_per_class=100,
        root="/usr/share/datasets/fashion-mnist",
        title="Fashion-MNIST-LT",
        files="install Debian's package dataset-fashion-mnist, or pass --data.root FOLDER",
    ),
    "cifar10-lt": Defaults(
        options=("root", "verify_md5", "validation_from"), validation_per_class=100
    ),
    "cifar100-lt": Defaults(options=("root", "verify_md5", "validation_from")),
    "glyphs-lt": Defaults(
        options=("root", "validation_from"),
        augment="shift",
        root=".data/glyphs",
        files="run python -m training.data.make_glyphs --output .data/glyphs",
    ),
    "cifar10-jpeg-lt": Defaults(
        options=("root", "validation_from"),
        validation_per_class=100,
        root=".data/cifar10-jpeg",
        title="CIFAR-10-LT (JPEG re-encoding)",
        files="unpack the folders train/<class>/ and test/<class>/ of JPEGs there",
    ),
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
