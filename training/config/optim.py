"""Optimiser and schedule."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.checks import check


@dataclass
class OptimConfig:
    """SGD with momentum, linear warm-up, then a cosine to zero.

    Attributes:
        epochs: Passes over the training data; >= 1.
        lr: Peak learning rate; > 0.
        momentum: Heavy-ball momentum; in [0, 1).
        weight_decay: L2 penalty on all parameters; >= 0.
        warmup_epochs: Epochs of the linear warm-up; in [0, epochs].
    """

    epochs: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 5


def check_optim(optim: OptimConfig) -> None:
    """Check the ranges."""
    check("optim.epochs", optim.epochs, optim.epochs >= 1, ">= 1")
    check("optim.lr", optim.lr, optim.lr > 0, "> 0")
    check("optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "in [0, 1)")
    check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, ">= 0")
    check(
        "optim.warmup_epochs",
        optim.warmup_epochs,
        0 <= optim.warmup_epochs <= optim.epochs,
        f"in [0, epochs={optim.epochs}]",
    )
