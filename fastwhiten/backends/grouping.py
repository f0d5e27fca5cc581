"""Accumulation dtypes, and rows by groups: what the formulas of the specification start from."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype, double_precision: bool = False) -> torch.dtype:
    """Return ``T``: float64 for float64 input or on request, float32 otherwise."""
    return torch.float64 if double_precision or dtype == torch.float64 else torch.float32


def to_groups(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Return rows ``[M, C]`` or planes ``[N, C, L]`` as ``[G, M, D]`` in ``dtype``."""
    rows = x if x.dim() == 2 else x.transpose(1, 2).reshape(-1, x.shape[1])  # [M, C]
    size = x.shape[1] // groups  # not -1: it cannot be inferred where M is 0
    return rows.to(dtype).reshape(rows.shape[0], groups, size).transpose(0, 1)  # [G, M, D]


def from_groups(grouped: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`to_groups`: ``[G, M, D]`` to the layout and dtype of ``like``."""
    rows = grouped.transpose(0, 1).reshape(grouped.shape[1], like.shape[1])  # [M, C]
    if like.dim() == 3:
        rows = rows.reshape(like.shape[0], like.shape[2], like.shape[1]).transpose(1, 2)
    return rows.to(like.dtype).contiguous()


def symmetrize(a: Tensor) -> Tensor:
    """Return ``(a + a^T) / 2`` over the last two dimensions."""
    return (a + a.mT) * 0.5
