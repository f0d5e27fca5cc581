"""digits-lt: the handwritten digits that come with scikit-learn, cut to a long tail.

1,797 grey images of 8 x 8 pixels with values 0 .. 16, 10 classes of 174 to 183 images (the test
part of "Optical Recognition of Handwritten Digits", UCI, by E. Alpaydin and C. Kaynak). They are
inside the scikit-learn package: nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from training.config.data import ImbalanceType
from training.data.base import LongTailedDataset, Split, channel_statistics
from training.data.longtail import long_tailed_split


def load_digits_lt(
    *,
    test_per_class: int,
    validation_per_class: int,
    imbalance_factor: float,
    seed: int,
    imbalance_type: ImbalanceType = "exp",
    class_order_seed: int | None = None,
) -> LongTailedDataset:
    """Load digits-lt; digit 0 is the most frequent class, digit 9 the rarest.

    The arguments are those of `long_tailed_split`.

    Example:
        >>> data = load_digits_lt(
        ...     test_per_class=40, validation_per_class=10, imbalance_factor=50, seed=0
        ... )
        >>> data.class_counts.tolist()
        [124, 80, 51, 33, 21, 14, 9, 5, 3, 2]
    """
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)  # [1797]
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.uint8))[:, None]  # [1797, 1, 8, 8]
    indices = long_tailed_split(
        labels,
        test_per_class=test_per_class,
        validation_per_class=validation_per_class,
        imbalance_factor=imbalance_factor,
        seed=seed,
        imbalance_type=imbalance_type,
        class_order_seed=class_order_seed,
    )
    train, validation, test = (
        Split(images[position], torch.from_numpy(labels)[position], position)
        for position in map(torch.from_numpy, (indices.train, indices.validation, indices.test))
    )
    mean, std = channel_statistics(train.images)
    return LongTailedDataset(
        name="digits-lt",
        class_names=tuple(str(name) for name in bunch.target_names),
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        split_seed=seed,
        cut=indices.cut,
        white=16,
    )
