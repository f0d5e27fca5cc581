"""Shrinkage intensities: how much of the covariance is replaced by a multiple of the identity.

``S' = (1 - rho) S + rho tr(S)/D I`` keeps the eigenvectors and moves only the eigenvalues. The
intensity ``rho`` is estimated per group from the batch, or fixed by the caller; gradients treat it
as a constant.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .backends import reference
from .backends.intensity import effective_rows, ledoit_wolf, oas

METHODS = ("oas", "ledoit-wolf")


# The codes that the raw ops take: which method, with its fixed intensity or 0.
_CODES = {"oas": reference.OAS, "ledoit-wolf": reference.LEDOIT_WOLF}


def encode(method: str | float | None) -> tuple[int, float]:
    """Return ``(method, value)`` as the raw ops take them."""
    if method is None:
        return reference.NO_SHRINKAGE, 0.0
    return (_CODES[method], 0.0) if isinstance(method, str) else (reference.FIXED, float(method))


def feature_intensity(
    method: str | float | None,
    covariance: Tensor,
    running_covariance: Tensor | None,
    batch_weight: float,
    x: Tensor,
    mean: Tensor,
    row_weight: Tensor | None,
    stages: ModuleType = reference,
) -> Tensor | None:
    """Return ``rho`` ``[G]`` for the blended covariances ``[G, D, D]`` of rows or planes ``x``.

    None for no shrinkage. ``stages`` is the backend that computes it.
    """
    if method is None:
        return None
    rho: Tensor = stages.intensity(
        x, mean, covariance, running_covariance, row_weight, batch_weight, *encode(method)
    )
    return rho


def _trace(a: Tensor) -> Tensor:
    """Return the traces ``[G]`` of ``[G, D, D]``."""
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def sample_intensity(
    method: str | float | None, gram: Tensor, row_weight: Tensor | None, size: int
) -> Tensor | None:
    """Return ``rho`` ``[G]`` from the Gram matrices ``[G, M, M]`` of the sample side.

    None for no shrinkage.
    """
    if method is None:
        return None
    if not isinstance(method, str):
        return gram.new_full((gram.shape[0],), float(method))
    # The Gram matrix shares trace and square with the covariance.
    trace, square = _trace(gram), gram.square().sum((-2, -1))
    count = effective_rows(row_weight, gram.shape[-1])
    if method == "oas":
        return oas(trace, square, count, size)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)  # p_n |xc_n|^2
    fourth = (diagonal.square() * (gram.shape[-1] if row_weight is None else 1.0 / row_weight)).sum(
        -1
    )
    return ledoit_wolf(trace, square, fourth - square, count, size)
