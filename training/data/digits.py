"""digits-lt: the handwritten digits that come with scikit-learn, cut to a long tail.

1,797 grey images of 8 x 8 pixels with values 0 .. 16, 10 classes of 174 to 183 images (the test
part of "Optical Recognition of Handwritten Digits", UCI, by E. Alpaydin and C. Kaynak). They are
inside the scikit-learn package: nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from training.data.base import LongTailedDataset, Split, channel_statistics
from training.data.longtail import long_tailed_split
from training.data.options import ResolvedData


def load_digits_lt(data: ResolvedData, seed: int) -> LongTailedDataset:
    """Load digits-lt; digit 0 is the most frequent class, digit 9 the rarest.

    Args:
        data: Its options.
        seed: Seed of the split.

    Example:
        >>> from training.config import TrainConfig
        >>> from training.data.options import resolve_options
        >>> load_digits_lt(resolve_options(TrainConfig()), seed=0).class_counts.tolist()
        [124, 80, 51, 33, 21, 14, 9, 5, 3, 2]
    """
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)  # [1797]
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.uint8))[:, None]  # [1797, 1, 8, 8]
    indices = long_tailed_split(
        labels,
        cut=data.cut,
        seed=seed,
        validation_per_class=data.validation_per_class,
        test_per_class=data.test_per_class,
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
        options=data,
        split_seed=seed,
        cut=indices.cut,
        white=16,
    )
