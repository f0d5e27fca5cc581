"""Each stage alone: the compiled kernel beside the same formula in plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastwhiten import backends

from . import memory
from .providers import EPS, require
from .scenes import GPU_SCENES, SCENES, Scene

FEATURE_STAGES = (
    "statistics",
    "factor",
    "apply",
    "backward_reduce",
    "backward_matrix",
    "backward_apply",
)
SAMPLE_STAGES = ("sample_statistics", "eigh", "sample_apply", "sample_backward")
CASES = [
    pytest.param(
        scene,
        stage,
        id=f"{scene.id}-{stage}",
        marks=[pytest.mark.cuda_only] if scene in GPU_SCENES else [],
    )
    for scene in (*SCENES, *GPU_SCENES)
    for stage in (SAMPLE_STAGES if scene.sample_side else FEATURE_STAGES)
]


def feature_calls(stages: Any, scene: Scene, x: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of every feature-side stage, made by running the stages before it."""
    grad = torch.randn_like(x)
    statistics = (x, None, scene.groups, False)
    mean, covariance = stages.statistics(*statistics)
    factor = (covariance, None, None, 1.0, EPS, 0)
    eigenvalues, basis, matrix = stages.factor(*factor)
    reduce = (x, grad, mean, scene.groups)
    grad_sum, cross = stages.backward_reduce(*reduce)
    inner_arguments = (cross, eigenvalues, basis, matrix, None, None, 1.0, 0)
    inner, _ = stages.backward_matrix(*inner_arguments)
    return {
        "statistics": statistics,
        "factor": factor,
        "apply": (x, mean, matrix, None, None),
        "backward_reduce": reduce,
        "backward_matrix": inner_arguments,
        "backward_apply": (x, grad, mean, grad_sum, matrix, inner, None, None),
    }


def sample_calls(stages: Any, scene: Scene, x: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of every sample-side stage."""
    statistics = (x, None, scene.groups, False)
    _, scaled, gram = stages.sample_statistics(*statistics)
    eigenvalues, vectors = stages.eigh(gram)
    apply = (scaled, eigenvalues, vectors, None, None, EPS, x.dtype)
    projected = stages.sample_apply(*apply)[1]
    backward = (torch.randn_like(x), projected, eigenvalues, vectors, None, None, EPS)
    return {
        "sample_statistics": statistics,
        "eigh": (gram,),
        "sample_apply": apply,
        "sample_backward": backward,
    }


@functools.lru_cache(maxsize=1)
def calls_of(scene: Scene, device: str) -> dict[str, tuple[Any, ...]]:
    """Return ``{stage: its arguments}`` of a scene; the sizes are those of the whitening."""
    x = scene.input(device=device)
    x = x if x.dim() == 2 else x.reshape(x.shape[0], x.shape[1], -1)
    return (sample_calls if scene.sample_side else feature_calls)(backends.reference, scene, x)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize(("scene", "stage"), CASES)
def bench_stage(
    benchmark: Callable[..., Any], scene: Scene, stage: str, backend: str, device: str
) -> None:
    """Time one stage of one backend; results agree before the clock starts."""
    require(backend, device)
    calls = calls_of(scene, device)
    function = getattr(backends.get(backend), stage)
    expected = getattr(backends.reference, stage)(*calls[stage])
    agree(function(*calls[stage]), expected)
    benchmark.group = f"{stage} {scene.name}"
    memory.repeat(benchmark, function, lambda: (calls[stage], {}), device)


def agree(ours: Any, expected: Any) -> None:
    """Compare the first result of a stage; float32 rounding times the scenes' condition numbers."""
    first = ours if isinstance(ours, torch.Tensor) else ours[0]
    truth = expected if isinstance(expected, torch.Tensor) else expected[0]
    assert float((first - truth).norm() / truth.norm()) < 1e-3
