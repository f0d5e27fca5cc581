"""The layer between the pooled features and the classifier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from training.config.checks import check, check_unused, check_unused_options

WhiteningName = Literal["none", "batchnorm", "eager", "cholesky", "iternorm", "fused"]
WhiteningWeights = Literal["none", "class-balanced"]


@dataclass
class WhiteningOptions:
    """Options of the layer before the classifier; what a layer does not have must stay unchanged.

    Attributes:
        groups: Channel groups whitened on their own; divides the feature dimension.
            (eager, cholesky, iternorm, fused)
        kind: Which whitening. (fused; eager and iternorm are zca)
        eps: Added to the covariance's diagonal (batchnorm: to the variance); > 0.
        momentum: Weight of the new batch in the running statistics; in (0, 1].
        running: Which running statistic evaluation uses. (fused)
        batch_weight: Weight of the batch covariance against the running one in training; in (0, 1],
            1 is classical batch whitening. (fused)
        shrinkage: Shrinkage of the covariance's eigenvalues to their mean, or null. (fused)
        backend: Which implementation of fastwhiten. (fused)
        iterations: Newton steps; >= 1. (iternorm)
        weights_from: Whose class shares class-balanced weights are the inverse of: the "batch"'s,
            so every class in a batch counts the same, or the "dataset"'s, the same weight for a
            class in every batch. (fused with whitening_weights class-balanced)
    """

    groups: int = 1
    kind: Literal["zca", "pca", "cholesky"] = "zca"
    eps: float = 1e-3
    momentum: float = 0.1
    running: Literal["covariance", "matrix"] = "covariance"
    batch_weight: float = 1.0
    shrinkage: Literal["oas", "ledoit-wolf"] | None = None
    backend: str = "auto"
    iterations: int = 5
    weights_from: Literal["batch", "dataset"] = "batch"


# Which options of WhiteningOptions a layer takes notice of.
_PEER = ("groups", "eps", "momentum")
WHITENING_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batchnorm": ("eps", "momentum"),
    "eager": _PEER,
    "cholesky": _PEER,
    "iternorm": (*_PEER, "iterations"),
    "fused": tuple(
        f.name for f in fields(WhiteningOptions) if f.name not in ("iterations", "weights_from")
    ),
}


def check_whitening(whitening: str, options: WhiteningOptions) -> None:
    """Check the ranges, and that no option is set which the layer does not have."""
    names = ", ".join(WHITENING_OPTIONS)
    check("whitening", whitening, whitening in WHITENING_OPTIONS, f"out of {names}")
    check("whitening_options.eps", options.eps, options.eps > 0, "> 0")
    check("whitening_options.momentum", options.momentum, 0 < options.momentum <= 1, "in (0, 1]")
    check(
        "whitening_options.batch_weight",
        options.batch_weight,
        0 < options.batch_weight <= 1,
        "in (0, 1]",
    )
    check("whitening_options.iterations", options.iterations, options.iterations >= 1, ">= 1")
    section = "whitening_options."
    check_unused_options(section, options, WHITENING_OPTIONS, "--whitening ", whitening)


def check_whitening_weights(whitening: str, weights: str, options: WhiteningOptions) -> None:
    """Check that the layer takes weights if there are some, and that there are some to choose from.

    Raises:
        ConfigError: If an option would have no effect.
    """
    if whitening != "fused":
        where = f"with --whitening {whitening}, which takes no weights"
        check_unused("whitening_weights", weights, "none", where, "--whitening fused")
    if weights == "none":
        check_unused(
            "whitening_options.weights_from",
            options.weights_from,
            "batch",
            "with --whitening-weights none",
            "--whitening-weights class-balanced",
        )
