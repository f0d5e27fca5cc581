"""The layer between the pooled features and the classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from training.config.checks import check
from training.errors import ConfigError

WhiteningName = Literal["none", "batchnorm", "eager", "fused"]


@dataclass
class WhiteningOptions:
    """Options of the layer before the classifier; what a layer does not have must stay unchanged.

    Attributes:
        groups: Channel groups whitened on their own; divides the feature dimension.
            (eager, fused)
        kind: Which whitening. (fused; eager is zca)
        eps: Added to the covariance's diagonal (batchnorm: to the variance); > 0.
        momentum: Weight of the new batch in the running statistics; in (0, 1].
        running: Which running statistic evaluation uses. (fused)
        batch_weight: Weight of the batch covariance against the running one in training; in (0, 1],
            1 is classical batch whitening. (fused)
        shrinkage: Shrinkage of the covariance's eigenvalues to their mean, or null. (fused)
        backend: Which implementation of fastwhiten. (fused)
    """

    groups: int = 1
    kind: Literal["zca", "pca", "cholesky"] = "zca"
    eps: float = 1e-3
    momentum: float = 0.1
    running: Literal["covariance", "matrix"] = "covariance"
    batch_weight: float = 1.0
    shrinkage: Literal["oas", "ledoit-wolf"] | None = None
    backend: str = "auto"


# Which options of WhiteningOptions a layer takes notice of.
WHITENING_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batchnorm": ("eps", "momentum"),
    "eager": ("groups", "eps", "momentum"),
    "fused": tuple(f.name for f in fields(WhiteningOptions)),
}


def check_whitening(whitening: str, options: WhiteningOptions, feature_dim: int) -> None:
    """Check the ranges, and that no option is set which the layer does not have."""
    check("whitening_options.eps", options.eps, options.eps > 0, "> 0")
    check("whitening_options.momentum", options.momentum, 0 < options.momentum <= 1, "in (0, 1]")
    check(
        "whitening_options.batch_weight",
        options.batch_weight,
        0 < options.batch_weight <= 1,
        "in (0, 1]",
    )
    check(
        "whitening_options.groups",
        options.groups,
        options.groups >= 1 and feature_dim % options.groups == 0,
        f"a divisor of the feature dimension {feature_dim}",
    )
    _check_unused_options(whitening, options)


def _check_unused_options(whitening: str, options: WhiteningOptions) -> None:
    """An option that the chosen layer would ignore is an error, not a silent no-op."""
    used = WHITENING_OPTIONS[whitening]
    default = WhiteningOptions()
    for name, value in asdict(options).items():
        if name not in used and value != getattr(default, name):
            layers = [layer for layer, names in WHITENING_OPTIONS.items() if name in names]
            raise ConfigError(
                f"whitening_options.{name}: expected the default {getattr(default, name)!r} with "
                f"--whitening {whitening}, which has no such option, got {value!r}; "
                f"use --whitening {' or '.join(layers)}, or leave the option out."
            )
