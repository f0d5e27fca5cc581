"""The Triton backend: the stages through ``torch.ops.fastwhiten_triton`` (hop 4 of 5).

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
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import reference
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
    from fastwhiten.kernels import (
        apply,
        backward,
        backward_matrix,
        checks,
        common,
        eigh,
        factor,
        intensity,
        sample,
        statistics,
    )

    return SimpleNamespace(
        check=checks.check,
        check_kind=checks.check_kind,
        check_intensity=checks.check_intensity,
        check_spectrum=checks.check_spectrum,
        check_input=checks.check_input,
        check_square=checks.check_square,
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


def _rows(x: Tensor) -> int:
    return x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[2]


def _statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor]:
    k, dtype = _kernels(), reference.accumulation_dtype(x.dtype, double_precision)
    k.check_input("statistics", x, groups)
    k.check("statistics", "row_weight", row_weight, (_rows(x),), dtype, x)
    if x.shape[1] // groups >= LIBRARY:
        return reference.statistics(x, row_weight, groups, double_precision)
    mean, covariance = k.statistics(x, row_weight, groups, dtype)
    return mean, covariance


def _eigh(a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    # Jacobi's method begins anew here: with a start its kernel would need local memory.
    k = _kernels()
    k.check_square("eigh", "a", a)
    k.check("eigh", "start", start, tuple(a.shape), a.dtype, a)
    if a.shape[-1] > k.whole:
        return reference.eigh(a)
    eigenvalues, vectors = k.eigh(a)
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
    k, dtype = _kernels(), covariance.dtype
    k.check_square("factor", "covariance", covariance)
    shape = tuple(covariance.shape)
    k.check("factor", "running_covariance", running_covariance, shape, dtype, covariance)
    k.check("factor", "rho", rho, shape[:1], dtype, covariance)
    k.check("factor", "start", start, shape, dtype, covariance)
    k.check_kind("factor", kind)
    arguments = (covariance, running_covariance, rho, batch_weight, eps, kind)
    if shape[-1] > k.whole:
        return reference.factor(*arguments)
    eigenvalues, basis, matrix = k.factor(*arguments)
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
    k, blending = _kernels(), (running_covariance, row_weight, batch_weight)
    k.check_intensity(x, mean, covariance, running_covariance, row_weight, method)
    if method == reference.FIXED or covariance.shape[-1] >= LIBRARY:
        return reference.intensity(x, mean, covariance, *blending, method, value)
    rho: Tensor = k.intensity(x, mean, covariance, *blending, method)
    return rho


def _apply(
    x: Tensor, mean: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    k, dtype, channels = _kernels(), matrix.dtype, x.shape[1]
    k.check_square("apply", "matrix", matrix)
    k.check_input("apply", x, matrix.shape[0])
    size = channels // matrix.shape[0]
    k.check("apply", "matrix", matrix, (matrix.shape[0], size, size), dtype, x)
    for name, t in (("mean", mean), ("gamma", gamma), ("beta", beta)):
        k.check("apply", name, t, (channels,), dtype, x)
    if size >= LIBRARY:
        return reference.apply(x, mean, matrix, gamma, beta)
    y: Tensor = k.apply(x, mean, matrix, gamma, beta)
    return y


def _backward_reduce(x: Tensor, grad: Tensor, mean: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    k = _kernels()
    k.check_input("backward_reduce", x, groups)
    k.check("backward_reduce", "grad", grad, tuple(x.shape), x.dtype, x)
    k.check("backward_reduce", "mean", mean, (x.shape[1],), mean.dtype, x)
    if x.shape[1] // groups >= LIBRARY:
        return reference.backward_reduce(x, grad, mean, groups)
    grad_sum, cross = k.backward_reduce(x, grad, mean, groups)
    return grad_sum, cross


def _backward_matrix(
    cross: Tensor,
    eigenvalues: Tensor,
    basis: Tensor,
    matrix: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    kind: int,
) -> tuple[Tensor, Tensor]:
    k, dtype = _kernels(), cross.dtype
    k.check_square("backward_matrix", "cross", cross)
    k.check_kind("backward_matrix", kind)
    shape = tuple(cross.shape)
    groups, size = shape[:2]
    k.check("backward_matrix", "matrix", matrix, shape, dtype, cross)
    if kind != reference.CHOLESKY:
        k.check("backward_matrix", "eigenvalues", eigenvalues, shape[:2], dtype, cross)
        k.check("backward_matrix", "basis", basis, shape, dtype, cross)
    k.check("backward_matrix", "gamma", gamma, (groups * size,), dtype, cross)
    k.check("backward_matrix", "rho", rho, (groups,), dtype, cross)
    arguments = (cross, eigenvalues, basis, matrix, gamma, rho, batch_weight, kind)
    if size > k.whole:
        return reference.backward_matrix(*arguments)
    tie = reference.tie_tolerance(size, dtype)
    inner, grad_gamma = k.backward_matrix(*arguments, tie)
    return inner, grad_gamma


def _backward_apply(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    grad_sum: Tensor,
    matrix: Tensor,
    inner: Tensor,
    gamma: Tensor | None,
    row_weight: Tensor | None,
) -> Tensor:
    k, dtype, channels = _kernels(), mean.dtype, x.shape[1]
    groups = matrix.shape[0]
    k.check_input("backward_apply", x, groups)
    k.check("backward_apply", "grad", grad, tuple(x.shape), x.dtype, x)
    for name, t in (("mean", mean), ("grad_sum", grad_sum), ("gamma", gamma)):
        k.check("backward_apply", name, t, (channels,), dtype, x)
    size = channels // groups
    for name, t in (("matrix", matrix), ("inner", inner)):
        k.check("backward_apply", name, t, (groups, size, size), dtype, x)
    k.check("backward_apply", "row_weight", row_weight, (_rows(x),), dtype, x)
    arguments = (x, grad, mean, grad_sum, matrix, inner, gamma, row_weight)
    if size >= LIBRARY:
        return reference.backward_apply(*arguments)
    dx: Tensor = k.backward_apply(*arguments)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
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
    k, dtype = _kernels(), reference.accumulation_dtype(x.dtype, double_precision)
    k.check_input("sample_statistics", x, groups)
    if x.dim() != 2:
        raise ValueError(f"sample_statistics: expected rows [M, C], got {list(x.shape)}")
    k.check("sample_statistics", "row_weight", row_weight, (x.shape[0],), dtype, x)
    if not k.sample_serves(*x.shape):
        return reference.sample_statistics(x, row_weight, groups, double_precision)
    mean, scaled, gram = k.sample_statistics(x, row_weight, groups, dtype)
    return mean, scaled, gram


def _sample_apply(
    scaled: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    k, rows = _kernels(), scaled.shape[0]
    groups = eigenvalues.shape[0]
    k.check_input("sample_apply", scaled, groups)
    sizes = (groups, rows)
    k.check_spectrum("sample_apply", eigenvalues, eigenvectors, row_weight, rho, scaled, sizes)
    arguments = (scaled, eigenvalues, eigenvectors, row_weight, rho, eps, out_dtype)
    if not k.sample_serves(*scaled.shape):
        return reference.sample_apply(*arguments)
    y, projected = k.sample_apply(*arguments)
    return y, projected


def _sample_backward(
    grad: Tensor,
    projected: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
) -> Tensor:
    k = _kernels()
    groups, rows, size = projected.shape
    k.check_input("sample_backward", grad, groups)
    k.check("sample_backward", "grad", grad, (rows, groups * size), grad.dtype, projected)
    k.check("sample_backward", "projected", projected, (groups, rows, size), projected.dtype, grad)
    sizes = (groups, rows)
    k.check_spectrum(
        "sample_backward", eigenvalues, eigenvectors, row_weight, rho, projected, sizes
    )
    arguments = (grad, projected, eigenvalues, eigenvectors, row_weight, rho, eps)
    dx: Tensor = (k if k.sample_serves(*grad.shape) else reference).sample_backward(*arguments)
    return dx


_operator = functools.partial(operator, "fastwhiten_triton")
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
