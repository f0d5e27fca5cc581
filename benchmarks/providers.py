"""Who is compared: ours and what one would use instead, behind one signature."""

from __future__ import annotations

import importlib.util
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
# A Cholesky-whitened output is a rotation of the ZCA one: it is verified by its covariance.
ROTATED = ("cholesky", "fused-cholesky")
# Adds no eps to the covariance: whiter than the others, NaN where the covariance is singular.
WITHOUT_EPS = ("welford-torch",)
OURS = ("closed-form", "fused", "fused-cholesky", "layer", "triton")
# Packages of the extra "bench" by provider.
PACKAGES = {
    "torchspd": "torchspd",
    "spd_learn": "spd_learn",
    "welford-torch": "welford_torch",
    "kornia": "kornia",
}


def fused(scene: Scene) -> Forward:
    """Return `fastwhiten.whiten` on the compiled backend."""
    return lambda x: fastwhiten.whiten(x, groups=scene.groups, eps=EPS, backend="native")


def fused_cholesky(scene: Scene) -> Forward:
    """Return `fastwhiten.whiten` by Cholesky on the compiled backend: "cholesky"'s counterpart."""
    options = {"kind": "cholesky", "groups": scene.groups, "eps": EPS, "backend": "native"}
    return lambda x: fastwhiten.whiten(x, **options)


def layer(scene: Scene) -> Forward:
    """Return `fastwhiten.ChannelWhitening` in training, so with its running statistics."""
    return fastwhiten.ChannelWhitening(scene.shape[1], groups=scene.groups, eps=EPS)


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


def _on_rows(scene: Scene, whiten: Forward) -> Forward:
    """Return how ``[M, G, D] -> [M, G, D]`` whitens ``[N, C, *spatial]``."""

    def on_map(x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        rows = last.reshape(-1, scene.groups, scene.size)
        return whiten(rows).reshape(last.shape).movedim(-1, 1)

    return on_map


def _by_root(scene: Scene, inverse_root: Forward) -> Forward:
    """Return ZCA by a differentiable ``A^(-1/2)`` of matrices ``[G, D, D]``."""

    def whiten(rows: Tensor) -> Tensor:
        centred = (rows - rows.mean(0)).transpose(0, 1)  # [G, M, D]
        covariance = centred.mT @ centred / len(rows)
        identity = torch.eye(scene.size, device=rows.device)
        return (centred @ inverse_root(covariance + EPS * identity)).transpose(0, 1)

    return _on_rows(scene, whiten)


def torchspd(scene: Scene) -> Forward:
    """Return ZCA by ``torchspd.invsqrtm``: eigh, divided differences without a gap."""
    import torchspd

    return _by_root(scene, torchspd.invsqrtm)


def spd_learn(scene: Scene) -> Forward:
    """Return ZCA by ``spd_learn``'s ``matrix_inv_sqrt``: eigh, Loewner matrix in the backward."""
    from spd_learn.functional import matrix_inv_sqrt

    return _by_root(scene, matrix_inv_sqrt.apply)


def welford_torch(scene: Scene) -> Forward:
    """Return ``welford_torch.OnlineCovariance`` of one batch: eigh of every group and autograd."""
    from welford_torch import OnlineCovariance

    def whiten(rows: Tensor) -> Tensor:
        batch = OnlineCovariance(device=rows.device).add_all(rows)
        return ((rows - batch.mean).transpose(0, 1) @ batch.whit).transpose(0, 1)

    return _on_rows(scene, whiten)


def kornia(scene: Scene) -> Forward:
    """Return ``kornia.enhance.zca_whiten`` of every group: SVD in float64 and autograd."""
    from kornia.enhance import zca_whiten

    def whiten(rows: Tensor) -> Tensor:
        groups = [zca_whiten(group, unbiased=False, eps=EPS) for group in rows.unbind(1)]
        return torch.stack(groups, 1)

    return _on_rows(scene, whiten)


PROVIDERS: dict[str, Callable[[Scene], Forward]] = {
    "eager": eager,
    "compiled": compiled,
    "closed-form": closed_form,
    "cholesky": cholesky,
    "iternorm": iternorm,
    "batchnorm": batchnorm,
    "torchspd": torchspd,
    "spd_learn": spd_learn,
    "welford-torch": welford_torch,
    "kornia": kornia,
    "fused": fused,
    "fused-cholesky": fused_cholesky,
    "layer": layer,
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
    if name in ("fused", "fused-cholesky", "native") and device != "cpu":
        return cuda_module.import_error
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        return "not installed: pip install '.[bench]'"
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
