"""What a layer's evaluation has to be, in float64, from the numbers of a state_dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastwhiten import ChannelWhitening
from tests.helpers import plain, spectra

C = 4
# Well conditioned, so that rounding is that of the dtype: eigenvalues between 0.1 and about 20.
EPS = 0.1
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 5e-3}


def batch(seed: int, like: nn.Module | None = None, rows: int = 12) -> Tensor:
    x = spectra.random(rows, C, seed)
    return x if like is None else x.to(like.running_mean.dtype)


def expected(layer: ChannelWhitening, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The evaluation in float64, from the numbers of a state_dict."""
    state = {name: t.detach().double() for name, t in state.items()}
    if layer.running == "matrix":
        matrices = state["running_matrix"]
    else:
        matrices = []
        for s in state["running_cov"]:
            shift = EPS
            if layer.shrinkage is not None:
                shift, s = EPS + 0.3 * s.trace() / len(s), 0.7 * s
            matrices.append(plain.whitening_matrix(s, layer.kind, shift, "eigh"))
    parts = (x.double() - state["running_mean"]).chunk(layer.groups, 1)
    y = torch.cat([part @ w for part, w in zip(parts, matrices, strict=True)], 1)
    return y * state["weight"] + state["bias"] if layer.affine else y


def compare(layer: ChannelWhitening, y: Tensor, truth: Tensor) -> None:
    assert y.dtype == layer.running_mean.dtype
    tolerance = TOLERANCE[y.dtype]
    y = y.detach().double()
    if layer.kind == "pca":  # eigenvectors of ties may turn: Y Y^T = Xc S^-1 Xc^T may not
        if layer.affine and not torch.equal(layer.weight, torch.ones_like(layer.weight)):
            return
        y, truth = y @ y.T, truth @ truth.T
    assert (y - truth).norm() <= tolerance * truth.norm()
