"""Who is compared: ours and what one would use instead, behind one signature."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten.backends import cuda_module
from fastwhiten.backends import triton as triton_backend
from training.models import peers

from .scenes import Scene

EPS = 1e-3
Forward = Callable[[Tensor], Tensor]

# Approximate or not whitening at all: timed as landmarks, not held to the exact result.
INEXACT = ("iternorm", "batchnorm")


def fused(scene: Scene) -> Forward:
    """Return `fastwhiten.whiten` on the compiled backend."""
    return lambda x: fastwhiten.whiten(x, groups=scene.groups, eps=EPS, backend="native")


def triton(scene: Scene) -> Forward:
    """Return `fastwhiten.whiten` on the Triton kernels."""
    return lambda x: fastwhiten.whiten(x, groups=scene.groups, eps=EPS, backend="triton")


def closed_form(scene: Scene) -> Forward:
    """Return our formulas in plain PyTorch: what the mathematics gains without a kernel."""
    return lambda x: fastwhiten.whiten(x, groups=scene.groups, eps=EPS, backend="reference")


def eager(scene: Scene) -> Forward:
    """Return covariance, `torch.linalg.eigh` and autograd."""
    return lambda x: peers.eager_whiten(x, scene.groups, EPS)


def compiled(scene: Scene) -> Forward:
    """Return the eager one under `torch.compile`."""
    whiten: Forward = torch.compile(eager(scene), dynamic=False)
    return whiten


def cholesky(scene: Scene) -> Forward:
    """Return Cholesky whitening in eager PyTorch."""
    return lambda x: peers.cholesky_whiten(x, scene.groups, EPS)


def iternorm(scene: Scene) -> Forward:
    """Return IterNorm with five Newton steps."""
    return lambda x: peers.iternorm_whiten(x, scene.groups, EPS, iterations=5)


def batchnorm(scene: Scene) -> Forward:
    """Return batch normalisation: standardises, does not decorrelate."""
    dimensions = len(scene.shape) - 2
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dimensions]
    return layer(scene.shape[1], eps=EPS, affine=False)


PROVIDERS: dict[str, Callable[[Scene], Forward]] = {
    "eager": eager,
    "compiled": compiled,
    "closed-form": closed_form,
    "cholesky": cholesky,
    "iternorm": iternorm,
    "batchnorm": batchnorm,
    "fused": fused,
    "triton": triton,
}


def make(name: str, scene: Scene, device: str) -> Forward:
    """Return a provider for tensors on ``device``."""
    whiten = PROVIDERS[name](scene)
    return whiten.to(device) if isinstance(whiten, nn.Module) else whiten


def unavailable(name: str, device: str) -> str | None:
    """Return why a provider (or backend) cannot be measured on ``device``, None if it can.

    An interpreted kernel would be measured for nothing: it takes a thousand times as long.
    """
    if name == "triton" and device == "cpu":
        return "Triton kernels run on an NVIDIA GPU: --device cuda"
    if name == "triton":
        return triton_backend.unserved(torch.device(device))
    if name in ("fused", "native") and device != "cpu":
        return cuda_module.import_error
    return None


def require(name: str, device: str) -> None:
    """Skip a benchmark on a CPU, and fail it on a GPU, of who cannot be measured there."""
    reason = unavailable(name, device)
    if reason is not None:
        (pytest.skip if device == "cpu" else pytest.fail)(reason)


def exact(x: Tensor, grad: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return ZCA-whitened `x` and its gradient in float64: what errors are measured against."""
    wide = x.double().requires_grad_()
    y = fastwhiten.whiten(wide, groups=groups, eps=EPS, backend="reference")
    y.backward(grad.double())
    assert wide.grad is not None
    return y.detach(), wide.grad


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the truth."""
    return float((ours.double() - truth).norm() / truth.norm())


def residual(y: Tensor, groups: int) -> float:
    """Return how far from white `y` is: the mean over groups of |cov(y) - I|_F / sqrt(D)."""
    covariance = fastwhiten.batch_statistics(y.detach().double(), groups=groups)[1]
    size = covariance.shape[-1]
    identity = torch.eye(size, dtype=torch.float64, device=y.device)
    return float(((covariance - identity).square().sum((-2, -1)) / size).sqrt().mean())
