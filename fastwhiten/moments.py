"""Moments of a stream of rows in one pass: count, mean and scatter in float64, merged exactly.

Every chunk is reduced about its own mean by the statistics stage, and parts are joined by the
update of Chan, Golub and LeVeque (1979): with ``d`` the difference of their means, their scatters
add up to that of the whole but for ``n m / (n + m) d d^T``. Nothing is ever squared before its mean
is subtracted. The mean is the sum of two numbers, ``pivot`` and a small ``offset``: rounded to one,
a mean far above the deviations would blur the differences of chunks. Ledoit and Wolf's intensity
needs the fourth power of the distances from the final mean, too; it follows a shift of the mean
through the third, a vector (:meth:`Moments._moved`).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import backends

# How many deviations a mean may be from 0 to be subtracted as a single rounded number.
FAR = 64.0


@dataclasses.dataclass
class Moments:
    """Of ``count`` rows ``x_n`` with ``xc_n = x_n - pivot - offset``, all float64."""

    count: int
    pivot: Tensor  # [C]
    offset: Tensor  # [C]
    scatter: Tensor  # [C, C]: sum of xc_n xc_n^T
    cubic: Tensor | None = None  # [C]: sum of |xc_n|^2 xc_n
    quartic: Tensor | None = None  # []: sum of |xc_n|^4

    @staticmethod
    def of(rows: Tensor, fourth: bool, backend: str) -> Moments:
        """Return the moments of ``rows`` ``[n, C]``, n >= 1, floating point.

        Args:
            rows: any dtype that the statistics stage takes.
            fourth: whether ``cubic`` and ``quartic`` are wanted.
            backend: as in :func:`fastwhiten.whiten`.
        """
        stages = backends.get(backends.choose(backend, rows.device))
        count = rows.shape[0]
        mean, covariance = stages.statistics(rows.contiguous(), None, 1, True)
        offset, deviation = torch.zeros_like(mean), covariance[0].diagonal().sqrt()
        far = bool(((mean.abs() > FAR * deviation) & (deviation > 0)).any())
        centered = rows.to(mean.dtype) - mean if far or fourth else mean.new_empty(0)  # [n, C]
        if far:
            offset, covariance = stages.statistics(centered, None, 1, True)
        found = Moments(count, mean, offset, covariance[0].mul_(count))
        if fourth:
            centered -= offset
            distance = centered.square().sum(1)  # [n]
            found.cubic, found.quartic = distance @ centered, distance @ distance
        return found

    def merge(self, other: Moments) -> None:
        """Add the rows of ``other``, which stays as it is."""
        other = other.to(self.pivot.device)
        count = self.count + other.count
        distance = other.pivot - self.pivot + (other.offset - self.offset)  # [C], of the means
        ours = self._moved(distance * (-other.count / count))
        theirs = other._moved(distance * (self.count / count))
        self.offset = self.offset + distance * (other.count / count)
        self.cubic = self.quartic = None
        if ours is not None and theirs is not None:
            self.cubic, self.quartic = ours[0] + theirs[0], ours[1] + theirs[1]
        distance = distance * (self.count * other.count / count) ** 0.5
        self.scatter.add_(other.scatter).addr_(distance, distance)
        self.count = count

    @property
    def mean(self) -> Tensor:
        """Mean ``[C]``, rounded."""
        return self.pivot + self.offset

    def _moved(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return ``sum |xc + d|^2 (xc + d)`` and ``sum |xc + d|^4``, None without ``cubic``.

        By the binomial theorem; terms with a single ``xc`` sum to 0.
        """
        if self.cubic is None or self.quartic is None:
            return None
        square, trace, turned = d @ d, self.scatter.trace(), self.scatter @ d
        cubic = self.cubic + (trace + self.count * square) * d + 2.0 * turned
        quartic = self.quartic + 4.0 * (d @ self.cubic) + 2.0 * square * trace
        return cubic, quartic + 4.0 * (d @ turned) + self.count * square * square

    def to(self, device: torch.device) -> Moments:
        """Return them on a device: themselves where they are there."""
        moved = {name: t.to(device) for name, t in self.tensors().items()}
        return Moments(self.count, **moved)

    def copy(self) -> Moments:
        """Return a copy that shares no memory."""
        return Moments(self.count, **{name: t.clone() for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: t for name, t in named.items() if isinstance(t, Tensor)}

    def is_finite(self) -> bool:
        """Return whether every number is finite; waits for the device."""
        return all(bool(torch.isfinite(t.sum())) for t in self.tensors().values())
