"""From the configuration to a sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import TrainConfig
from training.config.checks import check
from training.errors import ConfigError
from training.reproducibility import derive_seed
from training.samplers.apportion import Floats, Ints
from training.samplers.b3rs import B3RSStream
from training.samplers.base import BatchSampler
from training.samplers.instance import InstanceSampler, checked_bounds
from training.samplers.scheduled import Schedule, ScheduledSampler
from training.samplers.streams import BatchCount, DeckStream, ImageStream, Stream

BuildStream = Callable[[TrainConfig, list[Ints], BatchCount, int], tuple[Stream, Floats]]
"""Configuration, the images of each class, batches of an epoch, seed -> the stream of a sampler and
its long-run class frequencies [K]."""
ClassProbabilities = Callable[[Floats, int, int], Floats]
"""Images of each class [K], the epoch from 1, the run's epochs -> probability of each class [K]."""

# The position is part of the seed: append, never reorder.
_STREAMS = ("ordinary", "balanced", "schedule")


def build_sampler(
    config: TrainConfig, labels: Tensor, seed: int, num_classes: int | None = None
) -> BatchSampler:
    """Return the configured sampler of the training images with these labels [N].

    Without Batch Embedded Training (``bet_period`` null) every batch comes from ``sampler``. With a
    period T >= 1 its batches are embedded between instance-balanced ones, which go through the
    images in passes of their own; a period of 0 stands for infinity: ordinary batches alone, the
    same as ``sampler`` instance.

    Args:
        config: The configuration.
        labels: Class of every training image, int64 [N].
        seed: Seed of the plan.
        num_classes: K; by default the largest label + 1.

    Raises:
        ConfigError: If there is no such sampler in ``STREAMS``, or the batches do not fit the data.
    """
    known = ("instance", *STREAMS)
    check(
        "sampler", config.sampler, config.sampler in known, f"out of {', '.join(known)} (STREAMS)"
    )
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes or 0)  # [K]
    batch_size, drop_last = config.data.batch_size, config.data.drop_last
    if config.sampler == "instance" or config.bet_period == 0:
        return InstanceSampler(len(labels), batch_size, seed, drop_last, counts)
    batches = len(checked_bounds(len(labels), batch_size, drop_last))
    schedule = _schedule(config, batches, derive_seed(seed, _STREAMS.index("schedule")))
    everything = np.arange(len(labels))
    ordinary_seed = derive_seed(seed, _STREAMS.index("ordinary"))
    balanced, frequencies = STREAMS[config.sampler](
        config,
        np.split(np.argsort(labels.numpy(), kind="stable"), counts.cumsum(0)[:-1].numpy()),
        schedule.balanced_count,
        derive_seed(seed, _STREAMS.index("balanced")),
    )
    return ScheduledSampler(
        schedule,
        ImageStream(everything, batch_size, schedule.ordinary_count, ordinary_seed),
        balanced,
        {
            "ordinary": counts.double() / counts.sum(),
            "balanced": torch.from_numpy(frequencies),
        },
        batch_size,
        _parameters(config, len(labels), seed, batches),
    )


def _schedule(config: TrainConfig, batches: int, seed: int) -> Schedule:
    options = config.sampler_options
    period = config.bet_period or 1
    random = options.bet_schedule == "random"
    schedule = Schedule(batches, period, options.bet_start_epoch, random, seed)
    if config.statistics_batches == "balanced" and not any(
        schedule.balanced_count(epoch) for epoch in range(1, config.optim.epochs + 1)
    ):
        raise ConfigError(
            f"statistics_batches: expected 'all' or 'ordinary', got 'balanced' in a run of "
            f"{config.optim.epochs * batches} batches that has no balanced one with --bet-period "
            f"{period}; use a smaller period."
        )
    return schedule


def _b3rs(
    config: TrainConfig, members: list[Ints], batches: BatchCount, seed: int
) -> tuple[Stream, Floats]:
    options, batch_size = config.sampler_options, config.data.batch_size
    stream = B3RSStream(members, options, batch_size, batches, seed)
    return stream, stream.frequencies


def by_class(rule: ClassProbabilities) -> BuildStream:
    """Return the builder of a sampler that draws a class, then an image of it, by a rule.

    The probabilities of the rule have to be linear in the epoch.
    """

    def build(
        config: TrainConfig, members: list[Ints], batches: BatchCount, seed: int
    ) -> tuple[Stream, Floats]:
        present = [k for k, images in enumerate(members) if len(images)]
        images = [members[k] for k in present]
        counts = np.array([len(m) for m in images], dtype=np.float64)
        epochs = config.optim.epochs

        def probabilities(epoch: int) -> Floats:
            return rule(counts, epoch, epochs)

        frequencies = np.zeros(len(members))
        # The mean of first and last epoch is that of the run.
        frequencies[present] = (probabilities(1) + probabilities(epochs)) / 2
        stream = DeckStream(images, probabilities, config.data.batch_size, batches, seed)
        return stream, frequencies

    return build


# Kang et al., ICLR 2020, section 4.1: p_k is proportional to n_k^r with r = 0 (class-balanced) or
# 1/2 (sqrt).


def _class_balanced(counts: Floats, epoch: int, epochs: int) -> Floats:
    return np.full(len(counts), 1 / len(counts))


def _sqrt(counts: Floats, epoch: int, epochs: int) -> Floats:
    return np.sqrt(counts) / np.sqrt(counts).sum()


def _progressive(counts: Floats, epoch: int, epochs: int) -> Floats:
    """From instance-balanced in the first epoch to class-balanced in the last one, linearly.

    A run of one epoch stays instance-balanced.
    """
    t = min((epoch - 1) / max(epochs - 1, 1), 1.0)
    return (1 - t) * (counts / counts.sum()) + t * _class_balanced(counts, epoch, epochs)


STREAMS: dict[str, BuildStream] = {
    "class-balanced": by_class(_class_balanced),
    "sqrt": by_class(_sqrt),
    "progressive": by_class(_progressive),
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
