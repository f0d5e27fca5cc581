"""From the configuration to a sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.config.checks import check
from training.errors import ConfigError
from training.samplers.b3rs import B3RSStream
from training.samplers.base import BatchSampler
from training.samplers.classwise import (
    ClassRule,
    ClasswiseStream,
    class_balanced,
    progressive,
    square_root,
)
from training.samplers.instance import InstanceSampler, checked_bounds
from training.samplers.scheduled import Schedule, ScheduledSampler
from training.samplers.streams import MakeStream

BuildStream = Callable[[TrainConfig], MakeStream]
"""Configuration -> what makes the stream of balanced batches."""


def build_sampler(
    config: TrainConfig, labels: Tensor, seed: int, num_classes: int | None = None
) -> BatchSampler:
    """Return the configured sampler of the training images with these labels [N].

    Without Batch Embedded Training (``bet_period`` null) every batch comes from ``sampler``. With a
    period T >= 1 its batches are embedded between instance-balanced ones (`ScheduledSampler`); a
    period of 0 stands for infinity: ordinary batches alone, the same as ``sampler`` instance.

    Args:
        config: The configuration.
        labels: Class of every training image, int64 [N].
        seed: Seed of the plan.
        num_classes: K; by default the largest label + 1.

    Raises:
        ConfigError: If there is no such sampler in ``STREAMS``, or the batches do not fit the data.

    Example:
        >>> import torch
        >>> config = TrainConfig(sampler="class-balanced")
        >>> len(build_sampler(config, torch.arange(300) % 10, seed=0))  # of 128 images
        2
    """
    known = ("instance", *STREAMS)
    check(
        "sampler", config.sampler, config.sampler in known, f"out of {', '.join(known)} (STREAMS)"
    )
    batch_size, drop_last = config.data.batch_size, config.data.drop_last
    if config.sampler == "instance" or config.bet_period == 0:
        counts = torch.bincount(labels.cpu(), minlength=num_classes or 0)  # [K]
        return InstanceSampler(len(labels), batch_size, seed, drop_last, counts)
    options = config.sampler_options
    batches = len(checked_bounds(len(labels), batch_size, drop_last))
    sampler = ScheduledSampler(
        labels,
        batch_size,
        STREAMS[config.sampler](config),
        seed=seed,
        drop_last=drop_last,
        num_classes=num_classes,
        bet_period=config.bet_period or 1,
        bet_start_epoch=options.bet_start_epoch,
        bet_schedule=options.bet_schedule,
        parameters=_parameters(config, len(labels), seed, batches),
    )
    _check_statistics(config, sampler.schedule)
    return sampler


def _check_statistics(config: TrainConfig, schedule: Schedule) -> None:
    epochs = config.optim.epochs
    if config.statistics_batches == "balanced" and not any(
        schedule.balanced_count(epoch) for epoch in range(1, epochs + 1)
    ):
        raise ConfigError(
            f"statistics_batches: expected 'all' or 'ordinary', got 'balanced' in a run of "
            f"{epochs * schedule.batches} batches that has no balanced one with --bet-period "
            f"{schedule.period}; use a smaller period."
        )


def _b3rs(config: TrainConfig) -> MakeStream:
    options = asdict(config.sampler_options)
    return partial(
        B3RSStream, **{name: options[name] for name in options if not name.startswith("bet_")}
    )


def by_class(rule: ClassRule) -> BuildStream:
    """Return the builder of a sampler that draws a class, then an image of it, by a rule.

    The probabilities of the rule have to be linear in the epoch.
    """
    return lambda config: partial(ClasswiseStream, rule=rule, epochs=config.optim.epochs)


STREAMS: dict[str, BuildStream] = {
    "class-balanced": by_class(class_balanced),
    "sqrt": by_class(square_root),
    "progressive": by_class(progressive),
    "b3rs": _b3rs,
}
"""Every sampler but "instance"."""


def _parameters(config: TrainConfig, images: int, seed: int, batches: int) -> dict[str, Any]:
    """What the plan of ``images`` images depends on, by the names of the options."""
    parameters: dict[str, Any] = {
        "sampler": config.sampler,
        "bet_period": config.bet_period,
        "seed": seed,
        "num_samples": images,
        "batch_size": config.data.batch_size,
        "batches": batches,
    }
    if config.sampler == "progressive":
        parameters["epochs"] = config.optim.epochs
    for name, value in asdict(config.sampler_options).items():
        parameters[f"sampler_options.{name}"] = value
    return parameters
