"""Figures over seeds: mean, spread, interval, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit  # scikit-learn depends on scipy


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a figure over seeds.

    Attributes:
        n: Number of values.
        mean: Their mean; NaN if there is none.
        std: Sample standard deviation (n - 1); NaN for fewer than two values.
    """

    n: int
    mean: float
    std: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.n) if self.n else math.nan

    def half_width(self, confidence: float) -> float:
        """Half the width of Student's t interval of the mean; NaN for fewer than two values.

        Example:
            >>> round(spread([1.0, 2.0, 3.0]).half_width(0.95), 3)  # 4.303 / sqrt(3)
            2.484
        """
        if self.n < 2:
            return math.nan
        return float(stdtrit(self.n - 1, 0.5 + confidence / 2)) * self.error


def spread(values: Sequence[float | None]) -> Spread:
    """Summarise the values that are there; None and NaN are not.

    Example:
        >>> spread([1.0, None, 3.0])
        Spread(n=2, mean=2.0, std=1.4142135623730951)
    """
    present = [v for v in values if v is not None and not math.isnan(v)]
    n = len(present)
    mean = math.fsum(present) / n if n else math.nan
    squares = math.fsum((v - mean) ** 2 for v in present)
    return Spread(n, mean, math.sqrt(squares / (n - 1)) if n > 1 else math.nan)


def paired_differences(
    values: Mapping[Any, float | None], baseline: Mapping[Any, float | None]
) -> list[float | None]:
    """Value minus baseline for every seed (or other key) that both have, in the keys' order.

    Example:
        >>> paired_differences({0: 0.5, 1: 0.75}, {1: 0.5, 2: 1.0})
        [0.25]
    """
    pairs = [(values[seed], baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
    return [None if a is None or b is None else a - b for a, b in pairs]
