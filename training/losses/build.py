"""From the configuration to a loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.config import TrainConfig
from training.config.checks import check
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

    Example:
        >>> import torch
        >>> build_loss(TrainConfig(loss="logit-adjusted"), torch.tensor([3, 1]))
        LogitAdjusted()
    """
    check("loss", config.loss, config.loss in LOSSES, f"out of {', '.join(LOSSES)} (LOSSES)")
    return LOSSES[config.loss](config, class_counts, sampler)


def _ldam(config: TrainConfig, counts: Tensor, sampler: BatchSampler | None) -> ClassificationLoss:
    options = config.loss_options
    if config.loss == "ldam":
        return LDAM(counts, options.max_m, options.s)
    start = options.drw_epoch or drw_epoch(config.optim.epochs)
    return LDAM(counts, options.max_m, options.s, options.beta, start)


def _logit_adjusted(
    config: TrainConfig, counts: Tensor, sampler: BatchSampler | None
) -> ClassificationLoss:
    options = config.loss_options  # tau is 1, its default, where the loss has no such option
    prior, balanced_prior = _priors(options.prior, counts, sampler)
    return LogitAdjusted(prior, options.tau, balanced_prior)


LOSSES: dict[str, Callable[[TrainConfig, Tensor, BatchSampler | None], ClassificationLoss]] = {
    "ce": lambda config, counts, sampler: CrossEntropy(),
    "focal": lambda config, counts, sampler: Focal(config.loss_options.gamma),
    "cb": lambda config, counts, sampler: ClassBalanced(counts, config.loss_options.beta),
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
