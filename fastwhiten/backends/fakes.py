"""Fake kernels of the stages: shapes and dtypes of the results, for tracing and export.

Every backend that has operators registers these for them; they say nothing about how a stage works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference


def _fake_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor]:
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    size = x.shape[1] // groups
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(groups, size, size, dtype=dtype)


def _fake_eigh(a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[:-1]), a.new_empty(a.shape)


def _fake_eigh_sweeps(a: Tensor, start: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[:1], dtype=torch.int32)


def _fake_intensity(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    running_covariance: Tensor | None,
    row_weight: Tensor | None,
    batch_weight: float,
    method: int,
    value: float,
) -> Tensor:
    return covariance.new_empty(covariance.shape[0])


def _fake_factor(
    covariance: Tensor,
    running_covariance: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    eps: float,
    kind: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    matrix = covariance.new_empty(covariance.shape)
    if kind == reference.CHOLESKY:
        return covariance.new_empty(0), covariance.new_empty(0), matrix
    return (
        covariance.new_empty(covariance.shape[:-1]),
        covariance.new_empty(covariance.shape),
        matrix,
    )


def _fake_apply(
    x: Tensor, mean: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward_reduce(
    x: Tensor, grad: Tensor, mean: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    size = x.shape[1] // groups
    return mean.new_empty(mean.shape), mean.new_empty(groups, size, size)


def _fake_backward_matrix(
    cross: Tensor,
    eigenvalues: Tensor,
    basis: Tensor,
    matrix: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    kind: int,
) -> tuple[Tensor, Tensor]:
    return cross.new_empty(cross.shape), cross.new_empty(cross.shape[0] * cross.shape[1])


def _fake_backward_apply(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    grad_sum: Tensor,
    matrix: Tensor,
    inner: Tensor,
    gamma: Tensor | None,
    row_weight: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_whiten_forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    row_weight: Tensor | None,
    running_covariance: Tensor | None,
    groups: int,
    batch_weight: float,
    eps: float,
    kind: int,
    double_precision: bool,
    shrink_method: int,
    shrink_value: float,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    mean, covariance = _fake_statistics(x, row_weight, groups, double_precision)
    factors = _fake_factor(covariance, running_covariance, None, batch_weight, eps, kind)
    rho = mean.new_empty(0 if shrink_method == reference.NO_SHRINKAGE else groups)
    return x.new_empty(x.shape), mean, covariance, *factors, rho


def _fake_whiten_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    eigenvalues: Tensor,
    basis: Tensor,
    matrix: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    row_weight: Tensor | None,
    batch_weight: float,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _fake_sample_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    rows, channels = x.shape
    gram = x.new_empty(groups, rows, rows, dtype=dtype)
    return x.new_empty(channels, dtype=dtype), x.new_empty(rows, channels, dtype=dtype), gram


def _fake_sample_apply(
    scaled: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    groups, rows = eigenvalues.shape
    projected = scaled.new_empty(groups, rows, scaled.shape[1] // groups)
    return scaled.new_empty(scaled.shape, dtype=out_dtype), projected


def _fake_sample_backward(
    grad: Tensor,
    projected: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
) -> Tensor:
    return grad.new_empty(grad.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "statistics": _fake_statistics,
    "eigh": _fake_eigh,
    "eigh_sweeps": _fake_eigh_sweeps,
    "intensity": _fake_intensity,
    "factor": _fake_factor,
    "apply": _fake_apply,
    "backward_reduce": _fake_backward_reduce,
    "backward_matrix": _fake_backward_matrix,
    "backward_apply": _fake_backward_apply,
    "whiten_forward": _fake_whiten_forward,
    "whiten_backward": _fake_whiten_backward,
    "sample_statistics": _fake_sample_statistics,
    "sample_apply": _fake_sample_apply,
    "sample_backward": _fake_sample_backward,
}
