"""The training loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.config.checks import check

LossName = Literal["ce", "logit-adjusted"]


@dataclass
class LossOptions:
    """Options of the loss.

    Attributes:
        tau: Strength of the logit adjustment; >= 0. (logit-adjusted)
    """

    tau: float = 1.0


def check_loss(options: LossOptions) -> None:
    """Check the ranges."""
    check("loss_options.tau", options.tau, options.tau >= 0, ">= 0")
