"""Three ways to whiten the same batch, and which one serves which shape.

The *feature* side decomposes the D x D covariance and works through the whitening matrix. The
*sample* side decomposes the M x M Gram matrix of the rows: smaller when M < D, and with fewer
products when M = D. In the *eigenbasis* the feature side's matrix products shrink where D is large
and M is not much larger.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import backends
from .autograd import SampleWhiten, Whiten
from .backends import reference
from .backends.opaque import product
from .eigenbasis import EigenbasisWhiten
from .function_base import run
from .layout import restore

# Sample-side weights are divided by their square root, so a zero would lose its row. They are
# raised to this fraction of the largest one and computed in float64: a relative change of the
# covariance below float32 rounding, and an error of that row's output below 1e-10.
WEIGHT_FLOOR = 1e-12

# The feature side costs about 9 M D^2 + 10 D^3 operations, the eigenbasis 13 M D^2: less while
# M < 2.5 D. Below this width its separate operations cost more than the products they save.
EIGENBASIS_SIZE = 256
EIGENBASIS_ROWS_PER_CHANNEL = 2.5


class Whitened(NamedTuple):
    """What one pass of batch whitening leaves behind; only ``y`` carries a gradient."""

    y: Tensor  # like x
    mean: Tensor  # [C] T
    covariance: Tensor | None  # [G, D, D] T; None where it takes extra work and was not asked for
    matrix: Tensor | None  # [G, D, D] T; likewise
    basis: Tensor | None = None  # [G, D, D] T; eigenvectors, None where they help no next step


class Options(NamedTuple):
    """Validated settings of one whitening layer or call."""

    caller: str
    kind: int
    groups: int
    eps: float
    shrink: str | float | None
    double_precision: bool
    backend: str
    batch_weight: float = 1.0


class Batch(NamedTuple):
    """One batch on its way through a side."""

    x: Tensor  # [N, C, *spatial]
    view: Tensor  # [M, C] or [N, C, L], contiguous
    row_weight: Tensor | None  # [M] T
    gamma: Tensor | None  # [C]
    beta: Tensor | None  # [C]
    running_covariance: Tensor | None  # [G, D, D]
    double_precision: bool
    backend: str
    need: str | None  # "covariance" or "matrix": wanted even where it takes extra work
    start: Tensor | None = None  # [G, D, D] T, the last step's eigenvectors


def choose(x: Tensor, options: Options, backend: str) -> str:
    """Return ``"feature"``, ``"sample"`` or ``"eigenbasis"`` for a batch ``[N, C, *spatial]``."""
    if options.kind != reference.ZCA:
        return "feature"
    rows, size = x.numel() // x.shape[1], x.shape[1] // options.groups
    if rows <= size and options.batch_weight == 1.0:
        return "sample"
    # The reference backend keeps to the formulas that specify it.
    if backend != "reference" and size >= EIGENBASIS_SIZE:
        return "eigenbasis" if rows < EIGENBASIS_ROWS_PER_CHANNEL * size else "feature"
    return "feature"


def whiten_on(side: str, batch: Batch, options: Options) -> Whitened:
    """Whiten ``batch`` on the side that :func:`choose` named."""
    if side == "sample":
        return _sample(batch, options)
    return _eigenbasis(batch, options) if side == "eigenbasis" else _feature(batch, options)


def _dtype(batch: Batch) -> torch.dtype:
    return reference.accumulation_dtype(batch.x.dtype, batch.double_precision)


def _to(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what the stages take of a parameter, a buffer: contiguous, whoever assigned it."""
    return None if t is None else t.to(dtype).contiguous()


def _feature(batch: Batch, options: Options) -> Whitened:
    """Whiten through the D x D whitening matrix; scale and shift are part of the kernels."""
    dtype = _dtype(batch)
    start = _usable_start(batch, options)
    y, mean, covariance, _, basis, matrix, _ = run(
        Whiten,
        batch.view,
        _to(batch.gamma, dtype),
        _to(batch.beta, dtype),
        batch.row_weight,
        _to(batch.running_covariance, dtype),
        start,
        options.kind,
        options.groups,
        options.eps,
        options.batch_weight,
        options.shrink,
        batch.double_precision,
        batch.backend,
    )
    return Whitened(restore(y, batch.x), mean, covariance, matrix, None if start is None else basis)


def _usable_start(batch: Batch, options: Options) -> Tensor | None:
    """Return the start where there is one for this dtype, and an eigensolver that gains from it."""
    start = batch.start
    if start is None or start.dtype != _dtype(batch) or options.kind == reference.CHOLESKY:
        return None
    return (
        start.contiguous()
        if backends.takes_start(batch.backend, batch.x.device, start.shape[-1])
        else None
    )


def _eigenbasis(batch: Batch, options: Options) -> Whitened:
    """Whiten through the white coordinates of the rows."""
    y, mean, covariance, eigenvalues, basis, _, _ = run(
        EigenbasisWhiten,
        batch.view,
        batch.row_weight,
        _to(batch.running_covariance, _dtype(batch)),
        options.groups,
        options.eps,
        options.batch_weight,
        options.shrink,
        batch.double_precision,
        batch.backend,
    )
    matrix = None
    if batch.need == "matrix":
        with torch.no_grad():
            half = basis * eigenvalues.rsqrt().unsqueeze(-2)
            matrix = reference.symmetrize(product(half, basis.mT))
    return Whitened(_affine(restore(y, batch.x), batch), mean, covariance, matrix)


def _affine(y: Tensor, batch: Batch) -> Tensor:
    """Scale and shift channels where the kernels do not."""
    if batch.gamma is None or batch.beta is None:
        return y
    shape = [1, -1] + [1] * (y.dim() - 2)
    return (y * batch.gamma.reshape(shape) + batch.beta.reshape(shape)).to(y.dtype)


def _sample(batch: Batch, options: Options) -> Whitened:
    """Whiten through the rows' Gram matrix: there is no D x D eigenproblem."""
    view, p = batch.view, batch.row_weight
    if view.dim() == 3:
        # No more rows than channels: the one layout change is smaller than the matrix saved.
        # Contiguous: a view of one sample would stay one.
        view = view.transpose(1, 2).reshape(-1, view.shape[1]).contiguous()
    if p is not None:
        p = torch.maximum(p, WEIGHT_FLOOR * p.max())
        p = p / p.sum()
    y, mean, scaled, eigenvalues, _, projected, rho = run(
        SampleWhiten,
        view,
        p,
        options.groups,
        options.eps,
        options.shrink,
        batch.double_precision,
        batch.backend,
    )
    covariance = matrix = None
    with torch.no_grad():
        if batch.need == "covariance":
            grouped = reference.to_groups(scaled, options.groups, scaled.dtype)
            covariance = reference.symmetrize(product(grouped.mT, grouped))
        elif batch.need == "matrix":
            intensity = rho if rho.numel() else None
            matrix = _sample_matrix(eigenvalues, projected, intensity, options.eps)
    return Whitened(_affine(restore(y, batch.x), batch), mean, covariance, matrix)


def _sample_matrix(
    eigenvalues: Tensor, projected: Tensor, rho: Tensor | None, eps: float
) -> Tensor:
    """Return ``W = S^{-1/2}`` ``[G, D, D]`` without a D x D eigenproblem.

    ``W = e^{-1/2} I + (1 - rho) scaled^T V diag(k) V^T scaled``,
    ``k = -1 / (sqrt(e) t (sqrt(e) + t))``: the divided difference of ``l^{-1/2}``, so no small
    eigenvalue is divided by.
    """
    t, e = reference.sample_spectrum(eigenvalues, rho, eps, projected.shape[-1])
    root = e.sqrt().unsqueeze(-1)  # [G, 1]
    keep = torch.ones_like(root) if rho is None else (1.0 - rho).unsqueeze(-1)
    k = -keep * t / (root * (root + t))  # projected carries 1/t, twice
    identity = torch.eye(projected.shape[-1], dtype=projected.dtype, device=projected.device)
    matrix = product(projected.mT, k.unsqueeze(-1) * projected) + identity / root.unsqueeze(-1)
    return reference.symmetrize(matrix)
