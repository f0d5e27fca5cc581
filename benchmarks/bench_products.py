"""Stages on wide inputs, ours beside the same made of the library's matrix products.

From 256 channels of a group on, a stage is a matrix product in the first place. The CUDA kernels do
it in tiles of 64 x 64 with float32 FMA, every width alike, and fuse centring, affine and weights;
cuBLAS has better products, and the rest becomes passes over memory of its own. Which wins is to be
measured on a GPU: these are the stages made of ``torch.mm`` and ``torch.bmm``, with TF32 off, for
uniform weights and one group. Arguments and results are those of
:mod:`fastwhiten.backends.reference`, maps are read in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwhiten import backends

from . import memory, providers
from .gpu_timing import Run
from .scenes import Scene

STAGES = ("statistics", "apply", "backward_reduce", "backward_apply")
# Rows, wider rows, and the map of a ResNet's third stage.
SHAPES = ((8192, 256), (8192, 1024), (32, 256, 56, 56))
# Float32 sums of up to 100,352 rows in any order, against float64.
TOLERANCE = 1e-5


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``[C]`` and covariance ``[1, C, C]`` of ``[M, C]`` or ``[N, C, L]``."""
    mean, centered = _centered(x)
    if x.dim() == 2:
        covariance = torch.mm(centered.mT, centered)
    else:
        covariance = torch.bmm(centered, centered.mT).sum(0)
    return mean, (covariance / _rows(x)).unsqueeze(0)


def apply(x: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Return ``(x - mean) W``."""
    _, centered = _centered(x, mean)
    if x.dim() == 2:
        return torch.mm(centered, matrix[0])
    return torch.bmm(matrix[0].mT.expand(len(x), -1, -1), centered)


def backward_reduce(x: Tensor, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum_n g_n`` ``[C]`` and ``sum_n xc_n g_n^T`` ``[1, C, C]``."""
    _, centered = _centered(x, mean)
    if x.dim() == 2:
        return grad.sum(0), torch.mm(centered.mT, grad).unsqueeze(0)
    return grad.sum((0, 2)), torch.bmm(centered, grad.mT).sum(0, keepdim=True)


def backward_apply(
    x: Tensor, grad: Tensor, mean: Tensor, grad_sum: Tensor, matrix: Tensor, inner: Tensor
) -> Tensor:
    """Return ``(g_n - sum(g) / M) W^T - xc_n inner / M``."""
    share = 1.0 / _rows(x)
    _, centered = _centered(x, mean)
    _, grads = _centered(grad, share * grad_sum)
    if x.dim() == 2:
        return torch.addmm(torch.mm(grads, matrix[0].mT), centered, inner[0], alpha=-share)
    outer = torch.bmm(matrix.expand(len(x), -1, -1), grads)
    return torch.baddbmm(outer, inner[0].mT.expand(len(x), -1, -1), centered, alpha=-share)


LIBRARY: dict[str, Callable[..., Any]] = {
    "statistics": statistics,
    "apply": apply,
    "backward_reduce": backward_reduce,
    "backward_apply": backward_apply,
}


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _centered(x: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if x.dim() == 2:
        mean = x.mean(0) if mean is None else mean
        return mean, x - mean
    mean = x.mean((0, 2)) if mean is None else mean
    return mean, x - mean.unsqueeze(1)


def calls(x: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Return ``{stage: what the library's takes}`` for an input ``[M, C]`` or ``[N, C, L]``."""
    channels = x.shape[1]
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    mean, covariance = statistics(x)
    grad_sum, cross = backward_reduce(x, grad, mean)
    matrix = torch.eye(channels).to(x) + covariance / covariance.norm()  # any will do
    inner = (cross + cross.mT) / cross.norm()
    return {
        "statistics": (x,),
        "apply": (x, mean, matrix),
        "backward_reduce": (x, grad, mean),
        "backward_apply": (x, grad, mean, grad_sum, matrix, inner),
    }


def native(stage: str, arguments: tuple[Tensor, ...]) -> Run:
    """Return our kernels' call for what the library's takes."""
    function = getattr(backends.get("native"), stage)
    after: tuple[Any, ...] = {
        "statistics": (None, 1, False),
        "apply": (None, None),
        "backward_reduce": (1,),
        "backward_apply": (None, None),
    }[stage]
    return lambda: function(*arguments, *after)


def operations(scene: Scene, stage: str) -> float:
    """Return the multiplications and additions of a stage's products; symmetry is not counted."""
    products = 2 if stage == "backward_apply" else 1
    return 2.0 * products * scene.rows * scene.shape[1] ** 2


def error_of(results: Any, truth: Any) -> float:
    """Return the largest relative error of a stage's results against float64."""
    pairs = [(results, truth)] if isinstance(results, Tensor) else zip(results, truth, strict=True)
    return max(providers.relative_error(value, exact) for value, exact in pairs)


@pytest.mark.cuda_only
@pytest.mark.parametrize("whose", ["native", "library"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def bench_products(
    benchmark: Any, shape: tuple[int, ...], stage: str, whose: str, device: str
) -> None:
    """Time a stage of ours or of the library's, after comparing with the library's in float64."""
    providers.require(whose, device)
    scene = Scene(str(list(shape)), shape, 1, 0.0)
    x = scene.input(device=device)
    arguments = calls(x if x.dim() == 2 else x.flatten(2))[stage]
    truth = LIBRARY[stage](*(t.double() for t in arguments))
    run = native(stage, arguments) if whose == "native" else lambda: LIBRARY[stage](*arguments)
    error = error_of(run(), truth)
    assert error < TOLERANCE, f"relative error {error:.1e}, expected below {TOLERANCE:.0e}"
    benchmark.group = f"{stage} {scene.name}"
    benchmark.extra_info.update(error=error, operations=operations(scene, stage))
    memory.repeat(benchmark, run, lambda: ((), {}), device)
