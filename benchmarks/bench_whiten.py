"""Whitening, every provider on every scene; each is verified before it is timed."""

from __future__ import annotations

import functools

import pytest
import torch

from . import memory
from .providers import INEXACT, PROVIDERS, exact, make, relative_error, require, residual
from .scenes import GPU_SCENES, SCENES, Scene

# Float32 rounding amplified by the scenes' condition numbers; an error above it is a bug.
FORWARD_TOLERANCE = 1e-3
# A Cholesky-whitened output is a rotation of the ZCA one: it is verified by its covariance.
ROTATED = ("cholesky",)
# The gradient divides by square roots of eigenvalues once more than the output.
GRADIENT_TOLERANCE = 3e-3
OURS = ("fused", "triton", "closed-form")
CASES = [*SCENES, *(pytest.param(scene, marks=pytest.mark.cuda_only) for scene in GPU_SCENES)]


@functools.lru_cache(maxsize=1)  # of the scene at hand: all providers come one after another
def _truth(scene: Scene, device: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the output for the scene's first input, its gradient, and how white it is."""
    y, x_grad = exact(scene.input(device=device), gradient(scene, device), scene.groups)
    return y, x_grad, residual(y, scene.groups)


def gradient(scene: Scene, device: str) -> torch.Tensor:
    """Return a scene's incoming gradient."""
    return torch.randn(scene.shape, generator=torch.Generator().manual_seed(1)).to(device)


def verify(name: str, scene: Scene, y: torch.Tensor, dx: torch.Tensor) -> dict[str, float]:
    """Return errors against float64; raise when an exact provider is not."""
    truth, truth_grad, exact_residual = _truth(scene, str(dx.device))
    found = {"residual": residual(y, scene.groups), "exact_residual": exact_residual}
    if name not in (*INEXACT, *ROTATED):
        found["error"] = relative_error(y.detach(), truth)
        found["grad_error"] = relative_error(dx, truth_grad)
        assert found["error"] < FORWARD_TOLERANCE, f"{name} on {scene.name}: {found}"
        assert name not in OURS or found["grad_error"] < GRADIENT_TOLERANCE, (scene.name, found)
    if name in ROTATED:
        assert abs(found["residual"] - found["exact_residual"]) < FORWARD_TOLERANCE
    return found


@pytest.mark.usefixtures("bounds")
@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize("provider", list(PROVIDERS))
@pytest.mark.parametrize("scene", CASES, ids=lambda s: s.id)
def bench_whiten(benchmark, scene: Scene, provider: str, mode: str, device: str) -> None:
    """Time one provider on fresh inputs; `extra_info` holds error, flops, bytes and peak memory."""
    require(provider, device)
    whiten = make(provider, scene, device)
    grad = gradient(scene, device)
    x = scene.input(device=device).requires_grad_()
    y = whiten(x)
    (dx,) = torch.autograd.grad(y, x, grad)
    info = {"scene": scene.name, "provider": provider, "mode": mode, "device": device}
    benchmark.extra_info.update(info, flops=scene.flops(), bytes=scene.bytes())
    benchmark.extra_info.update(verify(provider, scene, y, dx))
    benchmark.group = f"{scene.name} {mode}"
    inputs = [scene.input(seed, device).requires_grad_(mode == "both") for seed in range(4)]

    def setup() -> tuple[tuple[torch.Tensor], dict[str, object]]:
        inputs.append(inputs.pop(0))  # fresh input: not the one that is in cache
        return (inputs[0],), {}

    def both(x: torch.Tensor) -> object:
        return torch.autograd.grad(whiten(x), x, grad)

    memory.repeat(benchmark, both if mode == "both" else whiten, setup, device)
    if device == "cpu" and mode == "both" and provider in ("eager", "fused"):
        benchmark.extra_info["peak_inputs"] = memory.peak_in_inputs(provider, scene)
