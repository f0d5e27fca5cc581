"""The eigensolvers alone: ours and the library's, on batches of covariances of one order."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastwhiten

from . import memory
from .providers import require

# (batch, order): one matrix of a whitening, the groups of one, and enough to fill a GPU
CASES = [(1, 16), (1, 64), (8, 64), (64, 16), (512, 32), (512, 64), (1, 128), (8, 128)]


def cupy_eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return CuPy's solution: cuSOLVER's, in one call for a batch."""
    import cupy

    values, vectors = cupy.linalg.eigh(cupy.from_dlpack(a))
    return torch.from_dlpack(values), torch.from_dlpack(vectors)


SOLVERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "library": torch.linalg.eigh,
    "native": lambda a: fastwhiten.symmetric_eigh(a, backend="native"),
    "triton": lambda a: fastwhiten.symmetric_eigh(a, backend="triton"),
    "cupy": cupy_eigh,
}

TRITON_UP_TO = 64
TRITON_BEYOND = "order 128 would spill to local memory: that size is the library's"


def covariances(batch: int, size: int, device: str) -> Tensor:
    """Return ``[batch, size, size]`` covariances of twice as many rows as channels."""
    rows = torch.randn(batch, 2 * size, size, generator=torch.Generator().manual_seed(0))
    return (rows.mT @ rows / (2 * size)).to(device)


def verified(a: Tensor, values: Tensor, vectors: Tensor) -> dict[str, float]:
    """Return a solution's residual and its vectors' distance from orthogonality, both relative.

    Raises:
        AssertionError: one of them is above 1e-5.
    """
    size = a.shape[-1]
    residual = (vectors * values.unsqueeze(-2) @ vectors.mT - a).norm() / a.norm()
    identity = torch.eye(size, device=a.device)
    orthogonality = (vectors.mT @ vectors - identity).norm(dim=(-2, -1)).max() / size**0.5
    assert residual < 1e-5 and orthogonality < 1e-5, (residual, orthogonality)
    return {"residual": float(residual), "orthogonality": float(orthogonality)}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("batch", "size"), CASES, ids=lambda n: str(n))
def bench_eigh(benchmark: Any, batch: int, size: int, solver: str, device: str) -> None:
    """Time one solver; its residual and the orthogonality of its vectors are verified before."""
    require(solver, device)
    if solver == "cupy" and (device == "cpu" or importlib.util.find_spec("cupy") is None):
        pytest.skip("needs CuPy and a GPU")
    if solver == "triton" and size > TRITON_UP_TO:
        pytest.skip(TRITON_BEYOND)
    a = covariances(batch, size, device)
    errors = verified(a, *SOLVERS[solver](a))
    benchmark.group = f"eigh {batch} x {size}"
    benchmark.extra_info.update(solver=solver, batch=batch, size=size, device=device, **errors)
    # CuPy launches on the default stream, which a graph of PyTorch's does not hold.
    memory.repeat(benchmark, SOLVERS[solver], lambda: ((a,), {}), device, solver != "cupy")
