"""What stage 2 may look at while it learns and chooses: the test split is not part of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import LongTailedDataset, Split
from training.reproducibility import generator


@dataclass(frozen=True)
class ChoiceData:
    """Training images to learn from, and images to choose on.

    Attributes:
        positions: Positions in the training split to learn from, int64 [N'].
        choice: Images to choose on.
        name: Where those come from: "validation", or "train-holdout" if the data set has no
            validation split. The run itself was trained on the latter, so choices are made by the
            training accuracy then.
    """

    positions: Tensor
    choice: Split
    name: str


def choice_data(dataset: LongTailedDataset, fraction: float, seed: int) -> ChoiceData:
    """Return the validation split, or hold images of every class out of the training split.

    Args:
        dataset: Its test split is not touched.
        fraction: Share of each class to hold out, at least one image, but none of a class that has
            one alone.
        seed: Seed of which images are held out.
    """
    labels = dataset.train.labels.cpu()  # [N]
    if dataset.validation is not None and len(dataset.validation) > 0:
        return ChoiceData(torch.arange(len(labels)), dataset.validation, "validation")
    random = generator("cpu", seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for k in range(dataset.num_classes):
        members = torch.nonzero(labels == k)[:, 0]  # [n_k]
        count = min(max(1, int(fraction * len(members))), max(0, len(members) - 1))
        held_out[members[torch.randperm(len(members), generator=random)[:count]]] = True
    chosen = torch.nonzero(held_out)[:, 0]
    train = dataset.train
    at = chosen.to(train.images.device)
    split = Split(train.images[at], train.labels[at], train.indices[chosen])
    return ChoiceData(torch.nonzero(~held_out)[:, 0], split, "train-holdout")
