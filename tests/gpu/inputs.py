"""Batches on the device, and forward + backward of them."""

from __future__ import annotations

import torch
from torch import Tensor

import fastwhiten
from tests.gpu.device import DEVICE
from tests.helpers import plain, spectra


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return correlated channels ``[N, C, *spatial]`` on the device."""
    rows = torch.Size(shape).numel() // shape[1]
    x = spectra.random(rows, shape[1], seed).reshape(shape[0], *shape[2:], shape[1])
    return x.movedim(-1, 1).contiguous().to(DEVICE, dtype)


def run(x: Tensor, grad: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:
    """Return output and gradient of ``fastwhiten.whiten``."""
    return plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend, **options)
