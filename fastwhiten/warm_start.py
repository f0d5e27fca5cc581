"""The last step's eigenvectors, kept for the next: where the CUDA kernels' eigensolver begins.

Blending in the running covariance makes the decomposed matrix change little from step to step. In
the eigenvectors of the last one it is almost diagonal, and few sweeps are left to do. They are a
hint and change results by rounding only: the identity stands for "none" (sweeps begin there
anyway), and the eigensolvers ignore what is not orthogonal to rounding, whoever has averaged or
rounded it. Triton's eigensolver begins anew every time: with a start its kernel would need local
memory. Those of the CPU are direct.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .backends import reference


def identity_basis(square: Tensor, double_precision: bool) -> Tensor:
    """Return identities ``[G, D, D]`` like ``square`` in its accumulation dtype."""
    dtype = reference.accumulation_dtype(square.dtype, double_precision)
    identity = torch.eye(square.shape[-1], device=square.device, dtype=dtype)
    return identity.expand_as(square).clone()


def first_basis(
    square: Tensor | None, batch_weight: float, kind: str, double_precision: bool
) -> Tensor | None:
    """Return what a layer begins with: identities, or None if no eigensolver would gain.

    Args:
        square: the running covariance ``[G, D, D]``.
        batch_weight: 1 decomposes a new matrix every step.
        kind: ``"cholesky"`` decomposes none.
        double_precision: whether the layer computes in float64 whatever its input.
    """
    if square is None or batch_weight == 1.0 or kind == "cholesky":
        return None
    if square.shape[-1] > max(backends.START_UP_TO.values()):
        return None
    return identity_basis(square, double_precision)


def forget(basis: Tensor, square: Tensor, double_precision: bool) -> Tensor:
    """Return identities: ``basis`` itself if it fits ``square``; a CUDA graph keeps its address."""
    fresh = identity_basis(square, double_precision)
    kept, wanted = ((t.shape, t.dtype, t.device) for t in (basis, fresh))
    return basis.copy_(fresh) if kept == wanted else fresh


def remember(basis: Tensor, new: Tensor) -> None:
    """Overwrite ``basis`` ``[G, D, D]`` by ``new`` in those groups where that is finite.

    Decided on the device: nothing is read back to the host.
    """
    finite = torch.isfinite(new.sum((-2, -1), keepdim=True))  # [G, 1, 1]
    basis.copy_(torch.where(finite, new, basis))
