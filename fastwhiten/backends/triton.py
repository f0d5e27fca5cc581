"""The Triton backend: the stages through ``torch.ops.fastwhiten.triton_<stage>``.

Kernels and launchers are in :mod:`fastwhiten.kernels`, which is imported when the first stage runs:
importing fastwhiten neither needs triton nor pays for it. Every launch is inside an operator with a
fake kernel, so ``torch.compile`` and ``torch.export`` see one opaque node and ``opcheck`` runs even
with interpreted kernels (``triton_op`` passes neither there).

Which sizes are ours, and why:

* Passes over rows: groups of fewer than 256 channels. From there on they are matrix products in the
  first place, and PyTorch's library has better ones than a float32 ``tl.dot``; the formulas of
  :mod:`fastwhiten.backends.reference` run around it.
* D x D stages (or M x M, on the sample side) up to order 64: one program holds a matrix in
  registers; order 128 would spill to local memory. Above, the stage is the reference's: the
  eigensolver is ``torch.linalg.eigh``, which synchronises with the host on a GPU (non-finite
  matrices are kept from it, so it raises nothing), the factor ``torch.linalg.cholesky_ex``, which
  does not. The sample side's passes over rows end there, too, and at 2**31 values of X.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import reference, stages
from .operators import operator

# The kernels need float32 products and shuffles that every NVIDIA GPU has, but configurations are
# compiled and checked for sm_80 and later only.
CAPABILITY = (8, 0)
# From this many channels of a group on, passes over rows are the library's matrix products.
LIBRARY = 256


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def import_error() -> str | None:
    """Return None if triton can be imported, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run `pip install triton` (Linux on x86-64 or aarch64)"
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken installation raises what it likes
        return f"triton cannot be imported ({error})"
    return None


def unserved(device: torch.device) -> str | None:
    """Return None if tensors on ``device`` are served, else what is missing."""
    if device.type == "cpu":
        if interpreted():
            return import_error()
        return (
            "it serves CUDA tensors, got a tensor on cpu; for tests, TRITON_INTERPRET=1 in the "
            "environment interprets the kernels on the CPU, slowly"
        )
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it serves NVIDIA GPUs, got a tensor on {device}"
    if interpreted():
        return "TRITON_INTERPRET=1 is set, so the kernels run on CPU tensors only"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return (
            f"it needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later, {device} has "
            f"{capability[0]}.{capability[1]}"
        )
    return import_error()


# What torch.compiler.assume_constant_result sets, without importing the compiler with fastwhiten:
# the answer depends on the machine alone, and finding it out cannot be traced.
unserved._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _kernels() -> Any:
    """Import the launchers; only here is triton needed."""
    from ..kernels import (
        apply,
        backward,
        backward_matrix,
        common,
        eigh,
        factor,
        intensity,
        sample,
        statistics,
    )

    return SimpleNamespace(
        whole=common.WHOLE,
        statistics=statistics.launch_statistics,
        intensity=intensity.launch_intensity,
        eigh=eigh.launch_eigh,
        factor=factor.launch_factor,
        apply=apply.launch_apply,
        backward_reduce=backward.launch_backward_reduce,
        backward_matrix=backward_matrix.launch_backward_matrix,
        backward_apply=backward.launch_backward_apply,
        sample_statistics=sample.launch_sample_statistics,
        sample_serves=sample.serves,
        sample_apply=sample.launch_sample_apply,
        sample_backward=sample.launch_sample_backward,
    )


# What these functions take has been checked against the table of the stages.


def _statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor]:
    if x.shape[1] // groups >= LIBRARY:
        return reference.statistics(x, row_weight, groups, double_precision)
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    mean, covariance = _kernels().statistics(x, row_weight, groups, dtype)
    return mean, covariance


def _eigh(a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    # Jacobi's method begins anew here: with a start its kernel would need local memory.
    k = _kernels()
    eigenvalues, vectors = reference.eigh(a) if a.shape[-1] > k.whole else k.eigh(a)
    return eigenvalues, vectors


def _factor(
    covariance: Tensor,
    running_covariance: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    eps: float,
    kind: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    k = _kernels()
    serves = reference if covariance.shape[-1] > k.whole else k
    eigenvalues, basis, matrix = serves.factor(
        covariance, running_covariance, rho, batch_weight, eps, kind
    )
    return eigenvalues, basis, matrix


def _intensity(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    running_covariance: Tensor | None,
    row_weight: Tensor | None,
    batch_weight: float,
    method: int,
    value: float,
) -> Tensor:
    arguments = (x, mean, covariance, running_covariance, row_weight, batch_weight, method)
    if method == reference.FIXED or covariance.shape[-1] >= LIBRARY:
        return reference.intensity(*arguments, value)
    rho: Tensor = _kernels().intensity(*arguments)
    return rho


def _apply(
    x: Tensor, mean: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    serves = reference if matrix.shape[-1] >= LIBRARY else _kernels()
    y: Tensor = serves.apply(x, mean, matrix, gamma, beta)
    return y


def _backward_reduce(x: Tensor, grad: Tensor, mean: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    serves = reference if x.shape[1] // groups >= LIBRARY else _kernels()
    grad_sum, cross = serves.backward_reduce(x, grad, mean, groups)
    return grad_sum, cross


def _backward_matrix(cross: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    k, size = _kernels(), cross.shape[-1]
    if size > k.whole:
        return reference.backward_matrix(cross, *arguments)
    tie = reference.tie_tolerance(size, cross.dtype)
    inner, grad_gamma = k.backward_matrix(cross, *arguments, tie)
    return inner, grad_gamma


def _backward_apply(
    x: Tensor, grad: Tensor, mean: Tensor, grad_sum: Tensor, matrix: Tensor, *rest: Any
) -> Tensor:
    serves = reference if matrix.shape[-1] >= LIBRARY else _kernels()
    dx: Tensor = serves.backward_apply(x, grad, mean, grad_sum, matrix, *rest)
    return dx


def _whiten_forward(
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
) -> tuple[Tensor, ...]:
    mean, covariance = _statistics(x, row_weight, groups, double_precision)
    rho = None
    if shrink_method != reference.NO_SHRINKAGE:
        blending = (running_covariance, row_weight, batch_weight)
        rho = _intensity(x, mean, covariance, *blending, shrink_method, shrink_value)
    factors = _factor(covariance, running_covariance, rho, batch_weight, eps, kind, start)
    y = _apply(x, mean, factors[2], gamma, beta)
    return y, mean, covariance, *factors, mean.new_empty(0) if rho is None else rho


def _whiten_backward(
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
    grad_sum, cross = _backward_reduce(x, grad, mean, matrix.shape[0])
    inner, grad_gamma = _backward_matrix(
        cross, eigenvalues, basis, matrix, gamma, rho, batch_weight, kind
    )
    dx = _backward_apply(x, grad, mean, grad_sum, matrix, inner, gamma, row_weight)
    return dx, grad_gamma, grad_sum


def _sample_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor, Tensor]:
    k = _kernels()
    if not k.sample_serves(*x.shape):
        return reference.sample_statistics(x, row_weight, groups, double_precision)
    dtype = reference.accumulation_dtype(x.dtype, double_precision)
    mean, scaled, gram = k.sample_statistics(x, row_weight, groups, dtype)
    return mean, scaled, gram


def _sample_apply(scaled: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    k = _kernels()
    serves = k if k.sample_serves(*scaled.shape) else reference
    y, projected = serves.sample_apply(scaled, *arguments)
    return y, projected


def _sample_backward(grad: Tensor, *arguments: Any) -> Tensor:
    k = _kernels()
    serves = k if k.sample_serves(*grad.shape) else reference
    dx: Tensor = serves.sample_backward(grad, *arguments)
    return dx


def _operator(name: str, function: Callable[..., Any]) -> Any:
    """Register ``function`` as an operator that checks its arguments first."""

    def checked(*arguments: Any) -> Any:
        stages.check(name, arguments, "cpu" if interpreted() else "cuda")
        return function(*arguments)

    return operator("triton", name, checked)


statistics = _operator("statistics", _statistics)
eigh = _operator("eigh", _eigh)
eigh_sweeps = _operator("eigh_sweeps", reference.eigh_sweeps)
intensity = _operator("intensity", _intensity)
factor = _operator("factor", _factor)
apply = _operator("apply", _apply)
backward_reduce = _operator("backward_reduce", _backward_reduce)
backward_matrix = _operator("backward_matrix", _backward_matrix)
backward_apply = _operator("backward_apply", _backward_apply)
whiten_forward = _operator("whiten_forward", _whiten_forward)
whiten_backward = _operator("whiten_backward", _whiten_backward)
sample_statistics = _operator("sample_statistics", _sample_statistics)
sample_apply = _operator("sample_apply", _sample_apply)
sample_backward = _operator("sample_backward", _sample_backward)
