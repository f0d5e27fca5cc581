"""mixup: convex combinations of the images of a batch, and of their losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MIXUP = 3  # tells its random numbers from those of the augmentation, which has the same seed


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        images: share * images + (1 - share) * images[partners], [b, C, H, W].
        partners: Which row is mixed into each, a permutation, int64 [b].
        share: In [0, 1].
    """

    images: Tensor
    partners: Tensor
    share: float


@dataclass(frozen=True)
class Mixup:
    """Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018; one share per batch.

    As in the authors' code, a batch is mixed with itself in another order. Each process mixes its
    own rows, in the share that all have. As the partners are a permutation, class weights of a
    loss have the same sum over the labels and over the partners'.

    Attributes:
        alpha: Of the share's Beta(alpha, alpha); > 0.
        seed: Of share and order; epoch and number of the batch are mixed in.

    Example:
        >>> mixed = Mixup(1.0, seed=0)(torch.eye(2)[:, :, None, None], epoch=1, index=0)
        >>> mixed.images.sum((1, 2, 3)).tolist()
        [1.0, 1.0]
    """

    alpha: float
    seed: int

    def __call__(self, images: Tensor, epoch: int, index: int) -> Mixed:
        """Mix the images of batch number ``index`` of an epoch, [b, C, H, W]."""
        random = np.random.default_rng((self.seed, epoch, index, _MIXUP))
        share = float(random.beta(self.alpha, self.alpha))
        partners = torch.from_numpy(random.permutation(len(images))).to(images.device)  # [b]
        return Mixed(torch.lerp(images[partners], images, share), partners, share)
