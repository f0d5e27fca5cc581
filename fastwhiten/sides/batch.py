"""What goes into a side and what comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import Group, Slots


class Whitened(NamedTuple):
    """What one pass of batch whitening leaves behind; only ``y`` carries a gradient."""

    y: Tensor  # like x
    mean: Tensor  # [C] T
    covariance: Tensor | None  # [G, D, D] T; None where it takes extra work and was not asked for
    matrix: Tensor | None  # [G, D, D] T; likewise
    basis: Tensor | None = None  # [G, D, D] T; eigenvectors, None where they help no next step


class Options(NamedTuple):
    """Validated settings of one whitening layer or call, in the order of the stages."""

    groups: int
    batch_weight: float
    eps: float
    kind: int
    double_precision: bool
    shrink: str | float | None
    backend: str
    caller: str


class Batch(NamedTuple):
    """One batch on its way through a side."""

    x: Tensor  # [N, C, *spatial]
    view: Tensor  # [M, C] or [N, C, L], contiguous
    row_weight: Tensor | None  # [M] T
    gamma: Tensor | None  # [C]
    beta: Tensor | None  # [C]
    running_covariance: Tensor | None  # [G, D, D]
    start: Tensor | None  # [G, D, D] T, the last step's eigenvectors
    need: str | None  # "covariance" or "matrix": wanted even where it takes extra work
    options: Options  # its backend has been chosen
    # Of a process group only: what the feature side and the sample side have to know of it.
    group: Group | None = None
    header: Tensor | None = None  # [3] T, see distributed.weigh_rows
    slots: Slots | None = None


def to_stage(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what the stages take of a parameter, a buffer: contiguous, whoever assigned it."""
    return None if t is None else t.to(dtype).contiguous()


def optional(t: Tensor) -> Tensor | None:
    """Return None for the empty tensor that stands for an absent result."""
    return t if t.numel() else None


def affine(y: Tensor, batch: Batch) -> Tensor:
    """Scale and shift channels where the kernels do not."""
    if batch.gamma is None or batch.beta is None:
        return y
    shape = [1, -1] + [1] * (y.dim() - 2)
    return (y * batch.gamma.reshape(shape) + batch.beta.reshape(shape)).to(y.dtype)
