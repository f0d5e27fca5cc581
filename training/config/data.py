"""How the data set is split, augmented and fed."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.checks import check


@dataclass
class DataConfig:
    """How the data set is split and fed.

    Attributes:
        test_per_class: Images per class held out for the balanced test split; >= 1.
        validation_per_class: Images per class held out of the training data, before the long-tail
            cut, for model selection; >= 1. Balanced, as the validation split of ImageNet-LT is.
        batch_size: Images per training batch; >= 2.
        drop_last: Leave out an epoch's last batch if it is smaller than batch_size. Otherwise it is
            used, but a last batch of one image joins the batch before (whitening needs two rows).
        shift: Largest random shift of the augmentation, in pixels; 0 is no augmentation.
    """

    test_per_class: int = 40
    validation_per_class: int = 10
    batch_size: int = 128
    drop_last: bool = True
    shift: int = 1


def check_data(data: DataConfig) -> None:
    """Check the ranges."""
    check("data.test_per_class", data.test_per_class, data.test_per_class >= 1, ">= 1")
    check(
        "data.validation_per_class",
        data.validation_per_class,
        data.validation_per_class >= 1,
        ">= 1",
    )
    check("data.batch_size", data.batch_size, data.batch_size >= 2, ">= 2")
    check("data.shift", data.shift, data.shift >= 0, ">= 0 pixels")
