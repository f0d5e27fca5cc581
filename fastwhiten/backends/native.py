"""The compiled backend: the same stages through ``torch.ops.fastwhiten`` (hop 4 of 5).

The kernels are in csrc, for the CPU and, where :mod:`fastwhiten.backends.cuda_module` could be
loaded, for CUDA.
Importing this module loads the extension and registers a fake kernel for every op, so that
``torch.compile`` and ``torch.export`` can trace it. :data:`import_error` holds the reason when the
extension cannot be loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch
from torch import Tensor

from . import cuda_module, reference

import_error: str | None = None
try:
    importlib.import_module("fastwhiten._C")  # the import registers the ops
except ImportError as error:  # built for another platform, or not built: the registry reports it
    import_error = str(error)


def _fake_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor]:
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    size = x.shape[1] // groups
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(groups, size, size, dtype=dtype)


def _fake_eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[:-1]), a.new_empty(a.shape)


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


FAKES = {
    "statistics": _fake_statistics,
    "eigh": _fake_eigh,
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


def missing_ops(names: Iterable[str]) -> list[str]:
    """Return the names that the loaded extension does not have: it was built from other sources."""
    return [name for name in names if not hasattr(torch.ops.fastwhiten, name)]


if import_error is None and missing_ops(FAKES):
    import_error = f"it was built from other sources and lacks {missing_ops(FAKES)}"

if import_error is None:
    cuda_module.load()
    for _name, _fake in FAKES.items():
        torch.library.register_fake(f"fastwhiten::{_name}")(_fake)
    statistics = torch.ops.fastwhiten.statistics
    eigh = torch.ops.fastwhiten.eigh
    intensity = torch.ops.fastwhiten.intensity
    factor = torch.ops.fastwhiten.factor
    apply = torch.ops.fastwhiten.apply
    backward_reduce = torch.ops.fastwhiten.backward_reduce
    backward_matrix = torch.ops.fastwhiten.backward_matrix
    backward_apply = torch.ops.fastwhiten.backward_apply
    whiten_forward = torch.ops.fastwhiten.whiten_forward
    whiten_backward = torch.ops.fastwhiten.whiten_backward
    sample_statistics = torch.ops.fastwhiten.sample_statistics
    sample_apply = torch.ops.fastwhiten.sample_apply
    sample_backward = torch.ops.fastwhiten.sample_backward
