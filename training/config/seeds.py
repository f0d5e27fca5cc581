"""Seeds of the single sources of randomness."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from training.config.checks import check


@dataclass
class SeedConfig:
    """Seeds of the single sources of randomness; null derives one from ``seed``.

    Attributes:
        split: Which images are tested on, validated on and kept by the long-tail cut.
        sampler: Order of the training images.
        augmentation: Random augmentation.
        initialisation: Initial weights.
    """

    split: int | None = None
    sampler: int | None = None
    augmentation: int | None = None
    initialisation: int | None = None


def check_seeds(seeds: SeedConfig) -> None:
    """Check the ranges."""
    for name, value in asdict(seeds).items():
        check(f"seeds.{name}", value, value is None or value >= 0, ">= 0 or null")
