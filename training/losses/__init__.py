"""Training losses: modules of torch with plain arguments, which need torch and numpy alone.

To add one: a subclass of `ClassificationLoss`, and a line in two tables, ``LOSS_OPTIONS`` of
`training.config.loss` and ``LOSSES`` of `training.losses.build`.
"""

from __future__ import annotations

from training.losses.base import ClassificationLoss, evaluation_loss
from training.losses.build import build_loss
from training.losses.cross_entropy import ClassBalanced, CrossEntropy, Focal, effective_weights
from training.losses.margins import LDAM, LogitAdjusted

__all__ = [
    "LDAM",
    "ClassBalanced",
    "ClassificationLoss",
    "CrossEntropy",
    "Focal",
    "LogitAdjusted",
    "build_loss",
    "effective_weights",
    "evaluation_loss",
]
