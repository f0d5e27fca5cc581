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


def identity_basis(square: Tensor) -> Tensor:
    """Return identities ``[G, D, D]`` like ``square`` in its accumulation dtype.

    Float32 in a float32 layer that computes in float64, too: some devices have no float64. Its
    eigensolver then begins anew.
    """
    dtype = reference.accumulation_dtype(square.dtype)
    identity = torch.eye(square.shape[-1], device=square.device, dtype=dtype)
    return identity.expand_as(square).clone()


def first_basis(square: Tensor | None, batch_weight: float, kind: str) -> Tensor | None:
    """Return what a layer begins with: identities, or None if no eigensolver would gain.

    Args:
        square: the running covariance ``[G, D, D]``.
        batch_weight: 1 decomposes a new matrix every step.
        kind: ``"cholesky"`` decomposes none.
    """
    if square is None or batch_weight == 1.0 or kind == "cholesky":
        return None
    if square.shape[-1] > backends.START_UP_TO[reference.accumulation_dtype(square.dtype)]:
        return None
    return identity_basis(square)


def forget(basis: Tensor, square: Tensor) -> Tensor:
    """Return identities: ``basis`` itself if it fits ``square``; a CUDA graph keeps its address."""
    fresh = identity_basis(square)
    kept, wanted = ((t.shape, t.dtype, t.device) for t in (basis, fresh))
    if kept != wanted or (basis.is_inference() and not torch.is_inference_mode_enabled()):
        return fresh
    return basis.copy_(fresh)


def remember(basis: Tensor, new: Tensor) -> None:
    """Overwrite ``basis`` ``[G, D, D]`` by ``new`` in those groups where that is finite.

    Decided on the device: nothing is read back to the host.
    """
    finite = torch.isfinite(new.sum((-2, -1), keepdim=True))  # [G, 1, 1]
    basis.copy_(torch.where(finite, new, basis))
