"""Stage 2: another classifier on the features of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config.checks import POSITIONAL, check, check_unused, check_unused_options

Stage2Method = Literal["crt", "lws", "los", "tau-norm", "logit-adjustment", "ncm"]
Distance = Literal["cl2n", "cosine", "euclidean"]


def _tau_grid() -> list[float]:
    return [step / 10 for step in range(21)]


@dataclass
class Stage2Config:
    """Decoupled training: Kang et al., "Decoupling Representation and Classifier", ICLR 2020.

    Weights of backbone and whitening layer stay as the run left them.

    Attributes:
        method: crt retrains the classifier from new weights with class-balanced batches; lws learns
            one scale per class that way; los trains the run's classifier on with labels smoothed
            almost to equality, instance-balanced (Sun et al., ICLR 2025); tau-norm divides each
            class's weights by their norm to the power tau; logit-adjustment takes tau times the log
            of each class's share off its logit (Menon et al., ICLR 2021); ncm takes the mean
            feature of each class as its weights.
        run: The run folder.
        checkpoint: Which of its checkpoints; its raw weights, never their average
            (optim.ema_decay), as for the figures of "last" and "best". Kang et al. take best.
        seed: Seed of the new weights, the batches and the augmentation; >= 0, null is the run's.
        epochs: Of int(N / batch_size) batches each, as in the papers' codes; >= 1. null is theirs:
            10 for crt (30 on iNaturalist, theirs alone), 5 for lws, 20 for los. (crt, lws, los)
        lr: Peak learning rate of the cosine, which falls after every epoch; > 0. null is the
            papers': 0.2 * batch_size / 512, but 5e-4 * batch_size / 64 for los. (crt, lws, los)
        momentum: Heavy-ball momentum; in [0, 1). (crt, lws, los)
        weight_decay: L2 penalty on what is learned; >= 0. null is the papers': the run's own, but 0
            for los. (crt, lws, los)
        batch_size: Images per batch; >= 2, null is the run's. (crt, lws, los)
        images_per_class: Images that a class gives when its turn comes; >= 1. (crt, lws)
        label_smoothing: Share of the label that is spread over all classes; in [0, 1). (los)
        cache_features: Compute the features once, without augmentation, and not in every epoch with
            the run's augmentation, as the papers do. Faster by about the number of epochs.
            (crt, lws, los)
        backbone: eval leaves the run's running statistics as they are and uses them; train is what
            the papers' codes do: features are normalised by each batch's statistics, which also
            update the running ones. (crt, lws, los)
        taus: Values to choose tau from, by balanced accuracy on held-out training images; >= 0.
            (tau-norm, logit-adjustment)
        bias: drop sets the classifier's bias to 0, as in the paper; keep leaves it. (tau-norm)
        adjustment: additive is Menon et al.'s; multiplicative divides each logit by the class's
            share to the power tau instead (Hasegawa and Sato, ICLR 2024). (logit-adjustment)
        distance: Nearest by which distance. cl2n is the paper's: features less their mean over the
            training images, divided by their length, and then averaged. (ncm)
        holdout: Fraction of each class's training images to choose on, where the data set has no
            validation split; in (0, 1). A class of one image gives none. (all but ncm)
        device: auto, cpu, cuda or any device name of torch; null is the run's.
        root: Folder for the new run folder; null is where the run lies.
        name: Name of the new run folder; null is <run>-<method>.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
    """

    method: Stage2Method = field(metadata=POSITIONAL)
    run: str = field(metadata=POSITIONAL)
    checkpoint: Literal["last", "best"] = "last"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    batch_size: int | None = None
    images_per_class: int = 4
    label_smoothing: float = 0.98
    cache_features: bool = False
    backbone: Literal["eval", "train"] = "eval"
    taus: list[float] = field(default_factory=_tau_grid)
    bias: Literal["drop", "keep"] = "drop"
    adjustment: Literal["additive", "multiplicative"] = "additive"
    distance: Distance = "cl2n"
    holdout: float = 0.1
    device: str | None = None
    root: str | None = None
    name: str | None = None
    overwrite: bool = False


_TRAINED = ("epochs lr momentum weight_decay batch_size cache_features backbone holdout").split()

# Which of the options that not all methods have a method takes notice of.
STAGE2_OPTIONS: dict[str, tuple[str, ...]] = {
    "crt": (*_TRAINED, "images_per_class"),
    "lws": (*_TRAINED, "images_per_class"),
    "los": (*_TRAINED, "label_smoothing"),
    "tau-norm": ("taus", "bias", "holdout"),
    "logit-adjustment": ("taus", "adjustment", "holdout"),
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
    check("epochs", config.epochs, config.epochs is None or config.epochs >= 1, ">= 1 or null")
    check("lr", config.lr, config.lr is None or config.lr > 0, "> 0 or null")
    check("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
    decay, size = config.weight_decay, config.batch_size
    check("weight_decay", decay, decay is None or decay >= 0, ">= 0 or null")
    check("batch_size", size, size is None or size >= 2, ">= 2 or null")
    check("images_per_class", config.images_per_class, config.images_per_class >= 1, ">= 1")
    smoothing = config.label_smoothing
    check("label_smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
    check("holdout", config.holdout, 0 < config.holdout < 1, "in (0, 1)")
    check("taus", config.taus, len(config.taus) > 0, "with at least one number")
    for tau in config.taus:
        check("taus", tau, tau >= 0, ">= 0")
    check_unused_options("", config, STAGE2_OPTIONS, "the method ", config.method)
    if config.cache_features:
        where = "with cache_features, which computes them before any training"
        check_unused("backbone", config.backbone, "eval", where, "--cache_features false")
