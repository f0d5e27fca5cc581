"""What is timed: shapes, targets, and the operations and bytes that each needs at least."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scene:
    """One input shape.

    Attributes:
        name: as printed.
        shape: ``[N, C, *spatial]``.
        groups: channel groups.
        target: how many times faster than eager eigh + autograd forward + backward has to be.
        beats_cholesky: whether ZCA, too, has to be faster than Cholesky whitening in eager PyTorch,
            as our Cholesky whitening has to be.
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    target: float
    beats_cholesky: bool = True

    @property
    def id(self) -> str:
        """The name as it can be given to pytest's -k."""
        return "x".join(map(str, self.shape)) + (f"g{self.groups}" if self.groups > 1 else "")

    @property
    def rows(self) -> int:
        """M, the number of rows."""
        return self.numel // self.shape[1]

    @property
    def size(self) -> int:
        """D, the channels of a group."""
        return self.shape[1] // self.groups

    @property
    def numel(self) -> int:
        """Number of elements of the input."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def sample_side(self) -> bool:
        """Whether the rows' Gram matrix is decomposed instead of the covariance."""
        return self.rows <= self.size

    @property
    def eigen_size(self) -> int:
        """Order of the matrix that is decomposed."""
        return min(self.rows, self.size)

    def bytes(self) -> float:
        """Bytes moved at least in float32, D x D matrices apart.

        Feature side: x four times, the gradient twice, output and dx once. Sample side: each once.
        """
        passes = 4 if self.sample_side else 8
        return 4.0 * passes * self.numel

    def input(self, seed: int = 0, device: str = "cpu") -> torch.Tensor:
        """Return correlated channels of unequal variance with a mean, ``[N, C, *spatial]``.

        Drawn on the CPU, so that every device gets the same numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(self.rows, self.shape[1], generator=generator)
        mixing = (
            torch.randn(self.shape[1], self.shape[1], generator=generator) / self.shape[1] ** 0.5
        )
        rows = rows @ mixing + torch.randn(self.shape[1], generator=generator)
        n, c, *spatial = self.shape
        return rows.reshape(n, *spatial, c).movedim(-1, 1).contiguous().to(device)


SCENES = (
    Scene("(128, 64)", (128, 64), 1, 2.0),
    Scene("(512, 64)", (512, 64), 1, 2.0),
    Scene("(128, 512)", (128, 512), 1, 12.0),
    Scene("(512, 512)", (512, 512), 1, 1.5, beats_cholesky=False),
    Scene("(256, 2048)", (256, 2048), 1, 60.0),
    Scene("(512, 8 x 64)", (512, 512), 8, 2.5),
    Scene("map (64, 64, 32, 32)", (64, 64, 32, 32), 1, 3.0),
)
# Where one block of a GPU works on the largest matrix that it can hold.
GPU_SCENES = (Scene("(128, 128)", (128, 128), 1, 1.0), Scene("(512, 128)", (512, 128), 1, 1.0))
