"""Divided differences of ``f(x) = x^p``, accurate where arguments are close, equal or far apart.

``f[x, y] = (f(x) - f(y)) / (x - y)`` cancels where ``x`` is near ``y``. With ``h`` the larger and
``l`` the smaller argument it is ``h^(p-1) (1 - (l/h)^p) / (1 - l/h)``, whose numerator is an
``expm1`` of a ``log1p``. ``f[x, y, z]`` is the divided difference of those where the arguments are
apart. Where they are close, the binomial series around the middle one, ``m``: with ``u`` and ``v``
the relative distances of the others, ``m^(p-2) sum_n binomial(p, n + 2) h_n(u, v)``, ``h_n`` the
complete homogeneous polynomial of degree n (C. de Boor, "Divided differences", 2005, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Arguments whose spread is below this share of the smallest are close. Terms of the series decay
# like its powers; beyond it the recursion loses less than two decimal digits.
CLOSE = 0.25


def first(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Return ``f[x, y]`` for arguments >= 0, broadcast; ``p x^(p-1)`` where they are equal.

    As large as the function demands: infinite with an argument of 0 for p < 0, and for 0 < p < 1
    with two.
    """
    if p == 0.0:
        return torch.zeros_like(x + y)
    if p == 0.5:
        return 1.0 / (x.sqrt() + y.sqrt())
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    apart = high > low
    distance = torch.where(apart, (high - low) / high, 0.0)  # 1 - low / high
    logarithm = torch.where(distance < 0.5, torch.log1p(-distance), torch.log(low / high))
    quotient = -torch.expm1(p * logarithm) / torch.where(apart, distance, 1.0)
    return high.pow(p - 1.0) * torch.where(apart, quotient, p)


def second(x: Tensor, y: Tensor, z: Tensor, p: float) -> Tensor:
    """Return ``f[x, y, z]`` for arguments > 0, broadcast; ``p (p-1) x^(p-2) / 2`` where equal."""
    least, most = torch.minimum(x, y), torch.maximum(x, y)
    low, high = torch.minimum(least, z), torch.maximum(most, z)
    middle = torch.maximum(least, torch.minimum(most, z))
    gap = high - low
    close = gap <= CLOSE * low
    apart = (first(middle, high, p) - first(low, middle, p)) / torch.where(close, 1.0, gap)
    u = torch.where(close, (low - middle) / middle, 0.0)
    v = torch.where(close, (high - middle) / middle, 0.0)
    factors = coefficients(p)
    h, power = torch.ones_like(u), torch.ones_like(v)
    series = torch.full_like(u, factors[0])
    for factor in factors[1:]:
        power = power * v
        h = h * u + power
        series = series + factor * h
    return torch.where(close, middle.pow(p - 2.0) * series, apart)


def coefficients(p: float) -> list[float]:
    """Return ``binomial(p, n + 2)`` for n = 0, 1, ... as far as float64 sees the terms.

    ``|h_n|`` is at most ``CLOSE^n``: u and v have different signs and their distance is CLOSE.
    """
    found = [p * (p - 1.0) / 2.0]
    largest, decay = abs(found[0]), 1.0
    while True:
        n = len(found)
        following = found[-1] * (p - n - 1.0) / (n + 2.0)
        decay *= CLOSE
        largest = max(largest, abs(following) * decay)
        # Past the largest binomial, for |p| above 1, factors fall below 1 / CLOSE by then.
        if abs(following) * decay <= 1e-18 * largest and n > abs(p):
            return found
        found.append(following)
