"""Optimiser, schedule, and the average of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from training.config.checks import check, check_unused


@dataclass
class OptimConfig:
    """SGD with momentum; linear warm-up, then a cosine to zero or steps.

    Attributes:
        epochs: Passes over the training data; >= 1.
        lr: Peak learning rate; > 0.
        momentum: Heavy-ball momentum; in [0, 1).
        nesterov: Nesterov's form of the momentum; needs momentum > 0.
        weight_decay: L2 penalty; >= 0.
        decay_all: Apply weight_decay to every parameter; otherwise not to biases and to the scales
            of normalisation layers (parameters of one dimension).
        warmup_epochs: Epochs of the linear warm-up; >= 0. In a run of fewer epochs it takes half of
            them, and the run says so.
        warmup_unit: The warm-up's factor is (e + 1) / warmup_epochs during epoch e from 0
            ("epoch", as in the code of LDAM), or rises with every step ("step").
        schedule: After the warm-up: "cosine" falls to 0; "multi-step" multiplies the rate by one of
            ``factors`` after each of ``milestones`` epochs.
        cosine_unit: The cosine falls with every "step", or after every "epoch", as in the code of
            Kang et al. (cosine)
        milestones: Epochs that are done when the rate changes; ascending, >= 1. A run that ends
            before one says so. (multi-step; LDAM and BBN on CIFAR: 160 and 180 of 200)
        factors: One factor per milestone, > 0; they multiply up. (multi-step; LDAM: 0.01, 0.01)
        clip_norm: Scale the gradient down to this Euclidean norm if it is longer; > 0, null never.
        ema_decay: Keep an exponential moving average of weights and running statistics with this
            decay per step; in (0, 1), null keeps none. It is evaluated and saved beside the model
            ("ema"). The model itself stays the raw one: it is what chooses "best", what the
            figures of "last" and "best" are of, and what eval, plot, diagnose, export and stage2
            take from a checkpoint.
    """

    epochs: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    warmup_epochs: int = 5
    warmup_unit: Literal["step", "epoch"] = "step"
    schedule: Literal["cosine", "multi-step"] = "cosine"
    cosine_unit: Literal["step", "epoch"] = "step"
    milestones: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    clip_norm: float | None = None
    ema_decay: float | None = None


def warmup_epochs(optim: OptimConfig) -> int:
    """Return the epochs that the warm-up takes.

    Example:
        >>> warmup_epochs(OptimConfig(epochs=5)), warmup_epochs(OptimConfig(epochs=4))
        (5, 2)
    """
    return optim.warmup_epochs if optim.warmup_epochs <= optim.epochs else optim.epochs // 2


def check_optim(optim: OptimConfig) -> None:
    """Check the ranges."""
    check("optim.epochs", optim.epochs, optim.epochs >= 1, ">= 1")
    check("optim.lr", optim.lr, optim.lr > 0, "> 0")
    check("optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "in [0, 1)")
    nesterov = "false where optim.momentum is 0"
    check("optim.nesterov", optim.nesterov, not optim.nesterov or optim.momentum > 0, nesterov)
    check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, ">= 0")
    check("optim.warmup_epochs", optim.warmup_epochs, optim.warmup_epochs >= 0, ">= 0")
    clip, decay = optim.clip_norm, optim.ema_decay
    check("optim.clip_norm", clip, clip is None or clip > 0, "> 0 or null")
    check("optim.ema_decay", decay, decay is None or 0 < decay < 1, "in (0, 1) or null")
    _check_milestones(optim)


def _check_milestones(optim: OptimConfig) -> None:
    """Milestones and factors belong together, and to the multi-step schedule."""
    milestones, factors = optim.milestones, optim.factors
    if optim.schedule == "cosine":
        where, instead = "with --optim.schedule cosine", "--optim.schedule multi-step"
        check_unused("optim.milestones", milestones, [], where, instead)
        check_unused("optim.factors", factors, [], where, instead)
        return
    where, instead = "with --optim.schedule multi-step", "--optim.schedule cosine"
    check_unused("optim.cosine_unit", optim.cosine_unit, "step", where, instead)
    ascending = all(a < b for a, b in pairwise(milestones))
    positive = all(m >= 1 for m in milestones)
    check(
        "optim.milestones",
        milestones,
        bool(milestones) and ascending and positive,
        "that is a non-empty ascending list of numbers >= 1 for multi-step",
    )
    check(
        "optim.factors",
        factors,
        len(factors) == len(milestones) and all(0 < f < float("inf") for f in factors),
        f"that lists {len(milestones)} numbers > 0, one per milestone",
    )
