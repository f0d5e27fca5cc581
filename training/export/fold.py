"""A trained classifier whose whitening is one matrix product, or none."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastwhiten import fold_into_linear
from fastwhiten.folding import affine_map
from training.errors import ConfigError
from training.models import WhitenedClassifier


class AffineMap(nn.Module):
    """y = x A + s, with numbers that do not change.

    Args:
        matrix: A, [D, D].
        shift: s, [D].
    """

    matrix: Tensor
    shift: Tensor

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        """Keep the numbers as buffers."""
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return torch.addmm(self.shift, x, self.matrix)


def freeze_whitening(model: WhitenedClassifier) -> WhitenedClassifier:
    """Return a copy, in evaluation mode, whose whitening is one matrix product and one sum."""
    frozen = copy.deepcopy(model).eval()
    if not isinstance(model.whitening, nn.Identity):
        matrix, shift = affine_map(model.whitening, model.classifier.weight.shape[1])
        like = next(frozen.classifier.parameters())
        frozen.whitening = AffineMap(matrix.to(like), shift.to(like))
    return frozen


def fold_whitening(model: WhitenedClassifier) -> WhitenedClassifier:
    """Return a copy, in evaluation mode, without whitening and with the same logits.

    Raises:
        ConfigError: If the classifier is not linear (LDAM's normalises its input).
    """
    if type(model.classifier) is not nn.Linear:  # a subclass may compute something else
        raise ConfigError(
            "fold: expected a linear classifier to fold the whitening into, got "
            f"{type(model.classifier).__name__}; leave --fold out."
        )
    folded = copy.deepcopy(model).eval()
    folded.classifier = fold_into_linear(folded.whitening, folded.classifier)
    folded.whitening = nn.Identity()
    return folded
