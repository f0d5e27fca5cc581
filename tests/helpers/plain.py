"""Whitening in plain PyTorch, group by group, written without looking at the package.

In float64 it is the truth of the tests, in the dtype under test it is their yardstick. Three
routes lead to the whitening matrix: ``eigh`` (what a user would write, with autograd through the
eigenvectors), ``iteration`` (Denman-Beavers, whose gradient knows no eigenvalues and so survives
ties) and, for the forward pass, the singular value decomposition of the data itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_rows(x: Tensor) -> Tensor:
    """``[N, C, *spatial]`` to ``[M, C]``."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def from_rows(rows: Tensor, x: Tensor) -> Tensor:
    """``[M, C]`` to the shape of ``x``."""
    return rows.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def probabilities(weight: Tensor | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Row weights ``[M]`` with sum 1 from ``[N]`` or ``[N, *spatial]``."""
    rows = x.numel() // x.shape[1]
    if weight is None:
        return torch.full((rows,), 1.0 / rows, dtype=dtype)
    shape = [x.shape[0]] + [1] * (x.dim() - 2)
    weight = weight.reshape(shape) if weight.dim() == 1 else weight
    flat = weight.to(dtype).expand(x.shape[0], *x.shape[2:]).reshape(-1)
    return flat / flat.sum()


def covariance(rows: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and covariance ``[D, D]``, the mean subtracted first."""
    mean = p @ rows
    centered = rows - mean
    return mean, centered.T @ (centered * p.unsqueeze(1))


def intensity(
    shrinkage: str | float,
    s: Tensor,
    batch: Tensor,
    rows: Tensor,
    p: Tensor,
    batch_weight: float = 1.0,
) -> float:
    """Shrinkage intensity from the definitions: sums over rows of outer products, no shortcuts.

    ``n`` is the effective number of rows ``1 / sum p^2``; the running part of a blended covariance
    is taken as known, so that only ``batch_weight`` times the batch's fluctuation counts.
    """
    if not isinstance(shrinkage, str):
        return shrinkage
    size = s.shape[0]
    n = float(1.0 / p.square().sum()) / batch_weight**2
    trace, square = float(s.trace()), float((s @ s).trace())
    spread = square - trace**2 / size
    if spread <= 0:
        return 1.0
    if shrinkage == "oas":
        numerator = (1 - 2 / size) * square + trace**2
        return min(1.0, numerator / ((n + 1 - 2 / size) * spread))
    outer = rows.unsqueeze(2) * rows.unsqueeze(1) - batch  # [M, D, D], rows are centred
    fluctuation = float(p @ outer.square().sum((1, 2))) / n
    return min(1.0, fluctuation / spread)


def denman_beavers(s: Tensor, steps: int = 40) -> Tensor:
    """``S^{-1/2}`` by the Denman-Beavers iteration, scaled: no eigenvalues, differentiable."""
    scale = s.detach().diagonal().mean()
    root, inverse = s / scale, torch.eye(s.shape[0], dtype=s.dtype)
    for _ in range(steps):
        following = (root + torch.linalg.inv(inverse)) / 2
        inverse = (inverse + torch.linalg.inv(root)) / 2
        moved = float((following.detach() - root.detach()).norm() / root.detach().norm())
        root = following
        if moved < 8 * torch.finfo(s.dtype).eps:
            break
    return (inverse + inverse.T) / 2 / scale.sqrt()


def signed_eigh(s: Tensor) -> tuple[Tensor, Tensor]:
    """Eigensystem with the component of largest magnitude of every vector positive."""
    eigenvalues, vectors = torch.linalg.eigh(s)
    picked = vectors.detach().gather(0, vectors.detach().abs().argmax(0, keepdim=True))
    return eigenvalues, vectors * picked.sign()


def whitening_matrix(s: Tensor, kind: str, eps: Tensor | float, route: str) -> Tensor:
    """``W`` ``[D, D]`` with ``Y = Xc W`` of a covariance ``s`` without eps."""
    identity = torch.eye(s.shape[0], dtype=s.dtype)
    if kind == "cholesky":
        lower = torch.linalg.cholesky(s + eps * identity)
        return torch.linalg.solve_triangular(lower, identity, upper=False).T
    if kind == "zca" and route == "iteration":
        return denman_beavers(s + eps * identity)
    eigenvalues, vectors = signed_eigh(s)
    w = vectors / (eigenvalues.clamp(min=0.0) + eps).sqrt()
    return w @ vectors.T if kind == "zca" else w


def whiten(
    x: Tensor,
    *,
    kind: str = "zca",
    groups: int = 1,
    eps: float = 1e-3,
    sample_weight: Tensor | None = None,
    shrinkage: str | float | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running: Tensor | None = None,
    batch_weight: float = 1.0,
    route: str = "eigh",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Whiten like :func:`fastwhiten.whiten` with the options of the layer, by autograd operations.

    Half precision is computed in float32, as autocast does; ``dtype`` overrides that.
    """
    dtype = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    rows = to_rows(x).to(dtype)
    p = probabilities(sample_weight, x, dtype)
    columns = []
    for g, part in enumerate(rows.chunk(groups, 1)):
        mean, batch = covariance(part, p)
        s = batch
        if running is not None:
            s = batch_weight * batch + (1 - batch_weight) * running[g].to(dtype)
        shift: Tensor | float = eps
        if shrinkage is not None:
            centered = (part - mean).detach()
            rho = intensity(shrinkage, s.detach(), batch.detach(), centered, p, batch_weight)
            shift = rho * s.trace() / s.shape[0] + eps
            s = (1 - rho) * s
        columns.append((part - mean) @ whitening_matrix(s, kind, shift, route))
    y = torch.cat(columns, 1)
    if gamma is not None:
        y = y * gamma.to(dtype)
    if beta is not None:
        y = y + beta.to(dtype)
    return from_rows(y, x).to(x.dtype)


def whiten_by_svd(x: Tensor, kind: str, eps: float) -> Tensor:
    """Whiten rows ``[M, C]`` through ``Xc = A diag(sigma) B^T``: no covariance is ever formed."""
    rows = x.double()
    centered = rows - rows.mean(0)
    left, sigma, right = torch.linalg.svd(centered, full_matrices=False)
    scaled = left * (sigma / (sigma.square() / rows.shape[0] + eps).sqrt())
    if kind == "zca":
        return scaled @ right
    vectors = right.T.flip(1)  # ascending, as the eigenvalues of the covariance
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return scaled.flip(1) * sign


def value_and_grad(function, x: Tensor, grad: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Return the value at ``x`` and the gradient of ``sum(value * grad)`` with respect to ``x``."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf, **options)
    (dx,) = torch.autograd.grad(y, leaf, grad.to(y.dtype))
    return y.detach(), dx
