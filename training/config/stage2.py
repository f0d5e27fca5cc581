"""Stage 2: another classifier on the frozen features of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from training.config.checks import POSITIONAL, check, check_unused_options

Stage2Method = Literal["crt", "lws", "tau-norm", "ncm"]


def _tau_grid() -> list[float]:
    return [step / 10 for step in range(21)]


@dataclass
class Stage2Config:
    """Decoupled training: Kang et al., "Decoupling Representation and Classifier", ICLR 2020.

    Backbone and whitening layer stay as the run left them, in evaluation mode.

    Attributes:
        method: crt retrains the classifier from new weights with class-balanced batches; lws learns
            one scale per class that way; tau-norm divides each class's weights by their norm to the
            power tau; ncm takes the mean feature of each class as its weights.
        run: The run folder.
        checkpoint: Which of its checkpoints; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        seed: Seed of the new weights, the batches and the augmentation; >= 0, null is the run's.
        epochs: Passes of max_k n_k images of every class each; >= 1. (crt, lws)
        lr: Peak learning rate of the cosine; > 0, null is the paper's 0.2 * batch_size / 512.
            (crt, lws)
        momentum: Heavy-ball momentum; in [0, 1). (crt, lws)
        weight_decay: L2 penalty on what is learned; >= 0. (crt, lws)
        batch_size: Images per batch; >= 2, null is the run's. (crt, lws)
        cache_features: Compute the features once, without augmentation, and not in every epoch with
            the run's augmentation, as the paper does. Faster by about the number of epochs.
            (crt, lws)
        taus: Values to choose tau from, by balanced accuracy on held-out training images; >= 0.
            (tau-norm)
        bias: drop sets the classifier's bias to 0, as in the paper; keep leaves it. (tau-norm)
        distance: Nearest by which distance. (ncm)
        holdout: Fraction of each class's training images to choose on, where the data set has no
            validation split; in (0, 1). A class of one image gives none. (crt, lws, tau-norm)
        device: auto, cpu, cuda or any device name of torch; null is the run's.
        root: Folder for the new run folder; null is where the run lies.
        name: Name of the new run folder; null is <run>-<method>.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
    """

    method: Stage2Method = field(metadata=POSITIONAL)
    run: str = field(metadata=POSITIONAL)
    checkpoint: Literal["last", "best"] = "last"
    seed: int | None = None
    epochs: int = 10
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int | None = None
    cache_features: bool = False
    taus: list[float] = field(default_factory=_tau_grid)
    bias: Literal["drop", "keep"] = "drop"
    distance: Literal["cosine", "euclidean"] = "cosine"
    holdout: float = 0.1
    device: str | None = None
    root: str | None = None
    name: str | None = None
    overwrite: bool = False


_TRAINED = ("epochs", "lr", "momentum", "weight_decay", "batch_size", "cache_features", "holdout")

# Which of the options that not all methods have a method takes notice of.
STAGE2_OPTIONS: dict[str, tuple[str, ...]] = {
    "crt": _TRAINED,
    "lws": _TRAINED,
    "tau-norm": ("taus", "bias", "holdout"),
    "ncm": ("distance",),
}


def check_stage2(config: Stage2Config) -> None:
    """Check the ranges, and that no option is set which the method does not have.

    Raises:
        ConfigError: Naming the option, the value that came and the values that are allowed.
    """
    names = ", ".join(STAGE2_OPTIONS)
    check("method", config.method, config.method in STAGE2_OPTIONS, f"out of {names}")
    check("seed", config.seed, config.seed is None or config.seed >= 0, ">= 0 or null")
    check("epochs", config.epochs, config.epochs >= 1, ">= 1")
    check("lr", config.lr, config.lr is None or config.lr > 0, "> 0 or null")
    check("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
    check("weight_decay", config.weight_decay, config.weight_decay >= 0, ">= 0")
    size = config.batch_size
    check("batch_size", size, size is None or size >= 2, ">= 2 or null")
    check("holdout", config.holdout, 0 < config.holdout < 1, "in (0, 1)")
    check("taus", config.taus, len(config.taus) > 0, "with at least one number")
    for tau in config.taus:
        check("taus", tau, tau >= 0, ">= 0")
    check_unused_options("", config, STAGE2_OPTIONS, "the method ", config.method)


def stage2_options(config: Stage2Config) -> dict[str, object]:
    """Return what the method takes notice of, with the method itself, as plain containers."""
    names = ("method", "checkpoint", "seed", *STAGE2_OPTIONS[config.method])
    known = {f.name for f in fields(config)}
    return {name: getattr(config, name) for name in names if name in known}
