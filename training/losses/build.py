"""From the configuration to a loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.config import TrainConfig
from training.config.checks import check
from training.errors import ConfigError
from training.losses.base import ClassificationLoss
from training.losses.cross_entropy import ClassBalanced, CrossEntropy, Focal
from training.losses.margins import LDAM, LogitAdjusted
from training.samplers.base import BatchSampler


def build_loss(
    config: TrainConfig, class_counts: Tensor, sampler: BatchSampler | None = None
) -> ClassificationLoss:
    """Return the configured training loss.

    Args:
        config: The configuration.
        class_counts: Training images per class, [K].
        sampler: What the batches come from; needed for priors other than the data set's.

    Raises:
        ConfigError: If there is no such loss in ``LOSSES``, or a class without images, or one that
            is never drawn, makes a prior 0.
    """
    check("loss", config.loss, config.loss in LOSSES, f"out of {', '.join(LOSSES)} (LOSSES)")
    return LOSSES[config.loss](config, class_counts, sampler)


def _class_balanced(
    config: TrainConfig, counts: Tensor, sampler: BatchSampler | None
) -> ClassificationLoss:
    _check_positive(counts, config.loss)
    return ClassBalanced(counts, config.loss_options.beta)


def _ldam(config: TrainConfig, counts: Tensor, sampler: BatchSampler | None) -> ClassificationLoss:
    _check_positive(counts, config.loss)
    options = config.loss_options
    if config.loss == "ldam":
        return LDAM(counts, options.max_m, options.s)
    start = options.drw_epoch or drw_epoch(config.optim.epochs)
    return LDAM(counts, options.max_m, options.s, options.beta, start)


def _logit_adjusted(
    config: TrainConfig, counts: Tensor, sampler: BatchSampler | None
) -> ClassificationLoss:
    _check_positive(counts, config.loss)
    options = config.loss_options  # tau is 1, its default, where the loss has no such option
    prior, balanced_prior = _priors(options.prior, counts, sampler)
    for frequencies in (prior, balanced_prior):
        _check_positive(frequencies, f"{config.loss} with loss_options.prior {options.prior}")
    return LogitAdjusted(prior, options.tau, balanced_prior)


LOSSES: dict[str, Callable[[TrainConfig, Tensor, BatchSampler | None], ClassificationLoss]] = {
    "ce": lambda config, counts, sampler: CrossEntropy(),
    "focal": lambda config, counts, sampler: Focal(config.loss_options.gamma),
    "cb": _class_balanced,
    "ldam": _ldam,
    "ldam-drw": _ldam,
    "balanced-softmax": _logit_adjusted,
    "logit-adjusted": _logit_adjusted,
}


def drw_epoch(epochs: int) -> int:
    """Return the first epoch after 80 % of the epochs, but at most the last one.

    Example:
        >>> drw_epoch(200), drw_epoch(1)
        (161, 1)
    """
    return min(epochs * 4 // 5 + 1, epochs)


def _priors(name: str, class_counts: Tensor, sampler: BatchSampler | None) -> tuple[Tensor, Tensor]:
    """Return the priors of ordinary and of balanced batches, [K] each."""
    if name == "dataset":
        return class_counts, class_counts
    if sampler is None:
        raise ValueError(
            f"build_loss: expected a sampler with loss_options.prior {name!r}, got none; pass the "
            "one that the batches come from."
        )
    if name == "effective":
        return sampler.class_frequencies(), sampler.class_frequencies()
    kinds = sampler.kinds()
    return (
        sampler.class_frequencies(kinds[0]),
        sampler.class_frequencies(kinds[-1]),
    )


def _check_positive(values: Tensor, loss: str) -> None:
    if not bool((values > 0).all()):
        missing = (values <= 0).nonzero().flatten().tolist()
        raise ConfigError(
            f"loss: expected every class to have training images, with --loss {loss}, which "
            f"divides by their number or takes its logarithm, got none of the classes "
            f"{missing[:10]}; remove these classes, or use --loss ce."
        )
