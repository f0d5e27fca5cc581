"""The specification: every stage in plain PyTorch, any floating dtype, any device.

This file is what the other backends are tested against (in float64) and what runs where no
compiled backend is available. It favours reading over speed: one formula of the mathematics per
line. The functions are not differentiable pieces: :mod:`fastwhiten.sides` calls them inside
``torch.autograd.Function``.

Notation (see :mod:`fastwhiten`): ``T`` is the accumulation dtype, float32 for
half/bfloat16/float32 input and float64 for float64 input or on request. Inputs come as rows
``[M, C]`` or planes ``[N, C, L]`` (``M = N * L``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grouping import accumulation_dtype as accumulation_dtype
from .grouping import from_groups as from_groups
from .grouping import symmetrize as symmetrize
from .grouping import to_groups as to_groups
from .intensity import effective_rows, ledoit_wolf, oas
from .stages import CHOLESKY as CHOLESKY
from .stages import FIXED as FIXED
from .stages import LEDOIT_WOLF as LEDOIT_WOLF
from .stages import NO_SHRINKAGE as NO_SHRINKAGE
from .stages import OAS as OAS
from .stages import PCA as PCA
from .stages import ZCA as ZCA

# Two eigenvalues closer than this many rounding errors of their own size are tied: a symmetric
# eigensolver's error is a modest multiple of D * machine epsilon * |l|.
TIE_FACTOR = 64.0


def tie_tolerance(size: int, dtype: torch.dtype) -> float:
    """Return the relative gap under which two eigenvalues count as tied, for order ``size``."""
    return TIE_FACTOR * size * torch.finfo(dtype).eps


def _row_weights(row_weight: Tensor | None, rows: int, like: Tensor) -> Tensor:
    """Return the row weights as a column ``[M, 1]`` in the dtype of ``like``.

    None means uniform: ``1/M``, as ``[1, 1]``.
    """
    if row_weight is None:
        return like.new_full((1, 1), 1.0 / rows)
    return row_weight.to(like.dtype).reshape(-1, 1)


def statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor]:
    """Return weighted mean ``[C]`` and covariance ``[G, D, D]`` (divisor M, no eps) in ``T``."""
    grouped = to_groups(x, groups, accumulation_dtype(x.dtype, double_precision))  # [G, M, D]
    p = _row_weights(row_weight, grouped.shape[1], grouped)  # [M, 1] or [1, 1]
    mean = (grouped * p).sum(1, keepdim=True)  # [G, 1, D]
    # A second, tiny correction removes what rounding left in the mean when |mean| >> std.
    mean = mean + ((grouped - mean) * p).sum(1, keepdim=True)
    centered = grouped - mean
    covariance = symmetrize((centered * p).mT @ centered)  # [G, D, D]
    return mean.reshape(-1), covariance


def _finite_matrices(a: Tensor) -> Tensor:
    """Return a mask ``[..., 1, 1]`` of the matrices all of whose entries are finite."""
    return torch.isfinite(a).all(-1, keepdim=True).all(-2, keepdim=True)


def eigh(a: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues ``[B, D]`` and eigenvectors ``[B, D, D]`` of symmetric ``a``.

    The component of largest magnitude of every eigenvector is positive (the first one where two
    are equal). A matrix with a non-finite entry gives NaN, and only that matrix: LAPACK itself
    would raise. ``start`` ``[B, D, D]``, orthogonal matrices near the eigenvectors, saves an
    iterative solver sweeps; LAPACK's is direct and has no use for it.
    """
    finite = _finite_matrices(a)  # [B, 1, 1]
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    eigenvalues, vectors = torch.linalg.eigh(torch.where(finite, a, identity))
    pivot = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))  # [B, 1, D]
    vectors = vectors * torch.where(pivot < 0, -1.0, 1.0).to(a.dtype)
    nan = torch.full((), float("nan"), dtype=a.dtype, device=a.device)
    vectors = torch.where(finite, vectors, nan).contiguous()  # LAPACK's are column-major
    return torch.where(finite.squeeze(-1), eigenvalues, nan), vectors


def eigh_sweeps(a: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the sweeps ``[B]`` (int32) of a solver that takes no start: -1, for not counted."""
    return torch.full(a.shape[:1], -1, dtype=torch.int32, device=a.device)


def blend(covariance: Tensor, running_covariance: Tensor | None, batch_weight: float) -> Tensor:
    """Return ``beta * S_batch + (1 - beta) * S_running``, what is shrunk and factored."""
    if running_covariance is None:
        return covariance
    return batch_weight * covariance + (1.0 - batch_weight) * running_covariance


def intensity(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    running_covariance: Tensor | None,
    row_weight: Tensor | None,
    batch_weight: float,
    method: int,
    value: float,
) -> Tensor:
    """Return the shrinkage intensity ``rho`` ``[G]`` of the blended covariances.

    ``value`` for FIXED. The running covariance counts as known: only the batch's share fluctuates,
    with ``batch_weight^2`` times the variance, as if there were that many more rows.
    """
    groups, size = covariance.shape[:2]
    if method == FIXED:
        return covariance.new_full((groups,), value)
    share = 1.0 if running_covariance is None else batch_weight
    rows = effective_rows(row_weight, x.numel() // x.shape[1]) / share**2
    blended = blend(covariance, running_covariance, batch_weight)
    trace, square = blended.diagonal(dim1=-2, dim2=-1).sum(-1), blended.square().sum((-2, -1))
    if method == OAS:
        return oas(trace, square, rows, size)
    centered = to_groups(x, groups, mean.dtype) - mean.reshape(groups, 1, size)
    p = _row_weights(row_weight, centered.shape[1], centered)
    fourth = (centered.square().sum(-1, keepdim=True).square() * p).sum((-2, -1))  # [G]
    return ledoit_wolf(trace, square, fourth - covariance.square().sum((-2, -1)), rows, size)


def factor(
    covariance: Tensor,
    running_covariance: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    eps: float,
    kind: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues ``[G, D]``, basis ``[G, D, D]`` and whitening matrix ``W`` ``[G, D, D]``.

    ``Y = Xc W``. ``S = (1 - rho) S' + (rho * trace(S') / D + eps) I``, ``S'`` the blended
    covariance. ZCA: ``U diag(l^-1/2) U^T``; PCA: ``U diag(l^-1/2)``; Cholesky: ``L^-T`` with empty
    eigenvalues and basis. ``start`` as in :func:`eigh`.
    """
    blended = symmetrize(blend(covariance, running_covariance, batch_weight))  # [G, D, D]
    size = blended.shape[-1]
    trace = blended.diagonal(dim1=-2, dim2=-1).sum(-1)  # [G]
    keep = torch.ones_like(trace) if rho is None else 1.0 - rho
    shift = torch.full_like(trace, eps) if rho is None else rho * trace / size + eps  # [G]
    if kind == CHOLESKY:
        identity = torch.eye(size, dtype=blended.dtype, device=blended.device)
        shifted = keep[:, None, None] * blended + shift.reshape(-1, 1, 1) * identity
        lower, info = torch.linalg.cholesky_ex(
            torch.where(_finite_matrices(shifted), shifted, -identity)
        )
        lower = torch.where((info == 0)[:, None, None], lower, float("nan"))
        inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        empty = covariance.new_empty(0)
        return empty, empty.clone(), inverse.mT.contiguous()
    spectrum, basis = eigh(blended)
    # S' is positive semidefinite: an eigenvalue below zero is rounding. NaN passes through clamp.
    eigenvalues = keep[:, None] * spectrum.clamp(min=0.0) + shift.reshape(-1, 1)
    matrix = basis * eigenvalues.rsqrt().unsqueeze(-2)  # U diag(1/s)
    if kind == ZCA:
        matrix = symmetrize(matrix @ basis.mT)
    return eigenvalues, basis, matrix


def apply(
    x: Tensor, mean: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Return ``((x - mean) W) * gamma + beta`` in the dtype and layout of ``x``."""
    groups, size = matrix.shape[:2]
    grouped = to_groups(x, groups, matrix.dtype) - mean.reshape(groups, 1, size)
    y = grouped @ matrix  # [G, M, D]
    if gamma is not None:
        y = y * gamma.reshape(groups, 1, size)
    if beta is not None:
        y = y + beta.reshape(groups, 1, size)
    return from_groups(y, x)


def backward_reduce(x: Tensor, grad: Tensor, mean: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return ``sum_n g_n`` ``[C]`` and ``sum_n xc_n g_n^T`` ``[G, D, D]`` in ``T``."""
    centered = to_groups(x, groups, mean.dtype) - mean.reshape(groups, 1, -1)
    grads = to_groups(grad, groups, mean.dtype)
    return grads.sum(1).reshape(-1), centered.mT @ grads


def mixing_weights(eigenvalues: Tensor, kind: int, size: int) -> Tensor:
    """Return ``w`` of ``R_ij = w_ij F_ij + (1 - w_ij) F_ji`` for the kind.

    The shape is ``[G, D, D]`` or ``[D, D]``. ZCA weights lie in (0, 1), so no eigenvalue gap is
    divided by. PCA weights are unbounded near ties; a tied pair gets 1/2 (the symmetric part),
    which is the documented policy.
    """
    if kind == CHOLESKY:
        ones = torch.ones(size, size, dtype=eigenvalues.dtype, device=eigenvalues.device)
        return ones.triu(1) + 0.5 * torch.eye(size, dtype=ones.dtype, device=ones.device)
    if kind == ZCA:
        s = eigenvalues.sqrt()
        return s.unsqueeze(-1) / (s.unsqueeze(-1) + s.unsqueeze(-2))
    row, column = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    gap = row - column
    tied = gap.abs() <= tie_tolerance(size, eigenvalues.dtype) * torch.maximum(row, column)
    return torch.where(tied, 0.5, row / torch.where(tied, 1.0, gap))


def backward_matrix(
    cross: Tensor,
    eigenvalues: Tensor,
    basis: Tensor,
    matrix: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    batch_weight: float,
    kind: int,
) -> tuple[Tensor, Tensor]:
    """Return ``inner`` ``[G, D, D]`` and the gradient of gamma ``[C]``.

    ``cross = sum_n xc_n g_n^T``, ``F = V^T A Q``, ``R = w F + (1 - w) F^T``, ``core = V R V^T``,
    ``inner = beta (1 - rho) core + beta rho trace(core) / D I``.
    """
    groups, size = matrix.shape[:2]
    grad_gamma = (matrix * cross).sum(-2).reshape(-1)
    scaled = cross if gamma is None else cross * gamma.reshape(groups, 1, size)
    outer = basis * eigenvalues.rsqrt().unsqueeze(-2) if kind == ZCA else matrix  # V
    f = outer.mT @ scaled
    if kind == ZCA:
        f = f @ basis
    w = mixing_weights(matrix.new_empty(0) if kind == CHOLESKY else eigenvalues, kind, size)
    r = w * f + (1.0 - w) * f.mT
    core = symmetrize(outer @ r @ outer.mT)
    if rho is None:
        return batch_weight * core, grad_gamma
    rho = rho.reshape(-1, 1, 1)
    trace = core.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(-1, 1, 1)
    identity = torch.eye(size, dtype=core.dtype, device=core.device)
    return batch_weight * ((1.0 - rho) * core + rho * trace / size * identity), grad_gamma


def backward_apply(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    grad_sum: Tensor,
    matrix: Tensor,
    inner: Tensor,
    gamma: Tensor | None,
    row_weight: Tensor | None,
) -> Tensor:
    """Return ``dx_n = (gamma (g_n - p_n sum g)) W^T - p_n xc_n inner``.

    In the dtype and layout of ``x``.
    """
    groups, size = matrix.shape[:2]
    centered = to_groups(x, groups, mean.dtype) - mean.reshape(groups, 1, size)
    grads = to_groups(grad, groups, mean.dtype)
    p = _row_weights(row_weight, grads.shape[1], grads)
    grads = grads - p * grad_sum.reshape(groups, 1, size)
    if gamma is not None:
        grads = grads * gamma.reshape(groups, 1, size)
    return from_groups(grads @ matrix.mT - (p * centered) @ inner, x)


def whiten_forward(
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
    """Return ``(y, mean, covariance, eigenvalues, basis, matrix, rho)``: a forward's stages.

    ``rho`` is ``[0]`` without shrinkage.
    """
    mean, covariance = statistics(x, row_weight, groups, double_precision)
    blending = (running_covariance, row_weight, batch_weight)
    rho = None
    if shrink_method != NO_SHRINKAGE:
        rho = intensity(x, mean, covariance, *blending, shrink_method, shrink_value)
    factors = factor(covariance, running_covariance, rho, batch_weight, eps, kind, start)
    y = apply(x, mean, factors[2], gamma, beta)
    return y, mean, covariance, *factors, mean.new_empty(0) if rho is None else rho


def whiten_backward(
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
    """Return ``(dx, grad_gamma, grad_sum)``: the stages of a backward."""
    grad_sum, cross = backward_reduce(x, grad, mean, matrix.shape[0])
    inner, grad_gamma = backward_matrix(
        cross, eigenvalues, basis, matrix, gamma, rho, batch_weight, kind
    )
    dx = backward_apply(x, grad, mean, grad_sum, matrix, inner, gamma, row_weight)
    return dx, grad_gamma, grad_sum


def sample_statistics(
    x: Tensor, row_weight: Tensor | None, groups: int, double_precision: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, the scaled rows and their Gram matrices, in ``T``.

    Mean ``[C]``, ``sqrt(p) (x - mean)`` ``[M, C]``, Gram matrices ``[G, M, M]``.
    """
    dtype = accumulation_dtype(x.dtype, double_precision)
    rows = x.to(dtype)  # [M, C]
    p = _row_weights(row_weight, rows.shape[0], rows)
    mean = (rows * p).sum(0)
    mean = mean + ((rows - mean) * p).sum(0)
    scaled = (rows - mean) * p.sqrt()
    grouped = to_groups(scaled, groups, dtype)
    return mean, scaled, symmetrize(grouped @ grouped.mT)


def sample_spectrum(
    eigenvalues: Tensor, rho: Tensor | None, eps: float, size: int
) -> tuple[Tensor, Tensor]:
    """Return ``t = sqrt((1 - rho) d + e)`` ``[G, M]`` and ``e = eps + rho sum(d) / D`` ``[G]``."""
    d = eigenvalues.clamp(min=0.0)
    if rho is None:
        return (d + eps).sqrt(), torch.full_like(d[:, 0], eps)
    e = eps + rho * d.sum(-1) / size
    return ((1.0 - rho)[:, None] * d + e[:, None]).sqrt(), e


def sample_apply(
    scaled: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return ``y = V P / sqrt(p)`` ``[M, C]`` and ``P = diag(1/t) V^T scaled`` ``[G, M, D]``."""
    groups = eigenvalues.shape[0]
    grouped = to_groups(scaled, groups, scaled.dtype)  # [G, M, D]
    t, _ = sample_spectrum(eigenvalues, rho, eps, grouped.shape[-1])
    projected = (eigenvectors.mT @ grouped) / t.unsqueeze(-1)
    p = _row_weights(row_weight, scaled.shape[0], scaled)
    y = (eigenvectors @ projected) / p.sqrt()
    return from_groups(y, scaled).to(out_dtype), projected


def sample_backward(
    grad: Tensor,
    projected: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    eps: float,
) -> Tensor:
    """Return ``dx`` ``[M, C]`` of the sample side in the dtype of ``grad``.

    With ``Gv = V^T (g / sqrt(p))``, ``F = Gv P^T`` and ``R = w F^T + (1 - w) F``,
    ``w_ij = t_i / (t_i + t_j)``: ``dx = C(sqrt(p) V diag(1/t) (Gv - R P))``, C the centring; with
    shrinkage, as below. It divides by no eigenvalue gap.
    """
    groups, _, size = projected.shape
    t, _ = sample_spectrum(eigenvalues, rho, eps, size)
    p = _row_weights(row_weight, grad.shape[0], projected)
    gv = eigenvectors.mT @ (to_groups(grad, groups, projected.dtype) / p.sqrt())  # [G, M, D]
    fm = gv @ projected.mT  # [G, M, M]
    w = t.unsqueeze(-1) / (t.unsqueeze(-1) + t.unsqueeze(-2))
    r = w * fm.mT + (1.0 - w) * fm
    if rho is None:
        inner = (gv - r @ projected) / t.unsqueeze(-1)
    else:
        trace = (fm.diagonal(dim1=-2, dim2=-1) / t.square()).sum(-1)  # [G]
        inner = (gv - (1.0 - rho).reshape(-1, 1, 1) * (r @ projected)) / t.unsqueeze(-1)
        inner = inner - (rho * trace / size).reshape(-1, 1, 1) * t.unsqueeze(-1) * projected
    centered = (eigenvectors @ inner) * p.sqrt()
    return from_groups(centered - p * centered.sum(1, keepdim=True), grad)
