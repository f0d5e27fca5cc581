"""How inputs reach the kernels.

As rows ``[M, C]`` or planes ``[N, C, L]``, without a permuted copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def channels_second(x: Tensor, channel_dim: int) -> Tensor:
    """View ``x`` as ``[N, C, *spatial]``, whose other dimensions keep their order.

    Tokens ``[N, L, C]`` become what :func:`as_rows_or_planes` reads in place.
    """
    return x if channel_dim == 1 else x.movedim(channel_dim, 1)


def channels_back(y: Tensor, channel_dim: int) -> Tensor:
    """Undo :func:`channels_second`."""
    return y if channel_dim == 1 else y.movedim(1, channel_dim)


def as_rows_or_planes(x: Tensor) -> Tensor:
    """View ``[N, C, *spatial]`` as rows or planes.

    ``[N, C]`` and channels_last maps become rows ``[M, C]``; contiguous maps become planes
    ``[N, C, L]``. Both are views; any other memory layout is copied once.
    """
    positions = math.prod(x.shape[2:])
    if positions == 1:
        return (x if x.dim() == 2 else x.reshape(x.shape[0], x.shape[1])).contiguous()
    if not x.is_contiguous():
        last = x.movedim(1, -1)  # [N, *spatial, C]
        if last.is_contiguous():
            return last.reshape(x.shape[0] * positions, x.shape[1])
    return (x if x.dim() == 3 else x.reshape(x.shape[0], x.shape[1], positions)).contiguous()


def restore(y: Tensor, x: Tensor) -> Tensor:
    """View rows or planes ``y`` in the shape of ``x``: undo :func:`as_rows_or_planes`."""
    if y.dim() == 2 and x.dim() > 2:
        return y.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
    return y if y.dim() == x.dim() else y.reshape(x.shape)


def flat_weights(weight: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[M]`` from ``[N]`` or ``[N, *spatial]``, in the order of the rows of ``x``."""
    w = weight.detach().to(dtype)
    if w.dim() == 1 and x.dim() > 2:
        w = w.reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape[0], *x.shape[2:])
    return w.reshape(-1)


def row_weights(weight: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return :func:`flat_weights` with sum 1."""
    w = flat_weights(weight, x, dtype)
    return w / w.sum()
