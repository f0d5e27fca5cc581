"""Inputs that break whitening elsewhere. All are float64 ``[rows, channels]``; tests round them."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _orthogonal(rows: int, channels: int, seed: int) -> Tensor:
    """Centred columns with ``Q^T Q = I``; needs ``rows > channels``."""
    noise = torch.randn(rows, channels, dtype=torch.float64, generator=generator(seed))
    return torch.linalg.qr(noise - noise.mean(0))[0]


def _rotation(channels: int, seed: int) -> Tensor:
    noise = torch.randn(channels, channels, dtype=torch.float64, generator=generator(seed))
    return torch.linalg.qr(noise)[0]


def random(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Correlated Gaussian rows: population eigenvalues 1 down to 0.1, mean of order 1."""
    noise = torch.randn(rows, channels, dtype=torch.float64, generator=generator(seed))
    scale = torch.logspace(0, -0.5, channels, dtype=torch.float64)
    return noise * scale @ _rotation(channels, seed + 1) + torch.linspace(-1, 1, channels).double()


def with_eigenvalues(rows: int, eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Rows whose covariance has exactly (to float64 rounding) the given eigenvalues."""
    channels = eigenvalues.numel()
    scaled = _orthogonal(rows, channels, seed) * (rows * eigenvalues.double()).sqrt()
    return scaled @ _rotation(channels, seed + 1).T


def conditioned(rows: int, channels: int, condition: float, seed: int = 0) -> Tensor:
    """Eigenvalues from 1 to ``1 / condition``, evenly in the logarithm."""
    exponents = torch.linspace(0, 1, channels, dtype=torch.float64)
    return with_eigenvalues(rows, condition**-exponents, seed)


def white(rows: int = 64, channels: int = 8) -> Tensor:
    """Covariance is the identity to rounding: every eigenvalue is tied with every other."""
    return with_eigenvalues(rows, torch.ones(channels))


def tied(rows: int = 64, channels: int = 8) -> Tensor:
    """Two eigenspaces of dimension four, rotated."""
    eigenvalues = torch.ones(channels)
    eigenvalues[: channels // 2] = 4.0
    return with_eigenvalues(rows, eigenvalues)


def hadamard(rows: int = 16, channels: int = 8) -> Tensor:
    """Columns of a Hadamard matrix: the covariance is the identity in every dtype, bit for bit."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < rows:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h[:, 1 : channels + 1].clone()


def duplicated(rows: int = 64, channels: int = 8) -> Tensor:
    """Every column twice: half of the eigenvalues are zero."""
    return random(rows, channels // 2).repeat(1, 2)


def constant_column(rows: int = 64, channels: int = 8) -> Tensor:
    """One column never changes."""
    x = random(rows, channels)
    x[:, channels // 2] = 3.0
    return x


def large_mean(rows: int = 64, channels: int = 8) -> Tensor:
    """``|mean|`` is 1e4 times the standard deviation."""
    return random(rows, channels) + 1e4 * torch.linspace(0.5, 1.0, channels, dtype=torch.float64)


# The eigenvalues of these coincide (exactly or to rounding) or are zero, so that a gradient through
# eigenvectors is wrong or NaN; the yardstick is then the Denman-Beavers route.
DEGENERATE = {
    "white": white,
    "tied": tied,
    "hadamard": hadamard,
    "duplicated": duplicated,
    "constant": constant_column,
}
