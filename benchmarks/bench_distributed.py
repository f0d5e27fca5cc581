"""Whitening over two processes (gloo, one thread each), against the eager composition for the same.

``local`` is ours without synchronisation: what the collectives cost is the difference. PyTorch's
``nn.SyncBatchNorm`` takes no CPU tensors, so it is not among the providers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

import fastwhiten
from tests.distributed.processes import Processes

EPS = 1e-3
STEPS = 5  # in one timed call: starting the two processes' work takes a tenth of a millisecond
SHAPES = [(64, 64), (256, 64), (256, 256)]  # on each of the processes


def eager(x: Tensor) -> Tensor:
    """Return ZCA in autograd operations: two all-reduces forward and two backward."""
    count = torch.full((1,), float(len(x)))
    sums = all_reduce(torch.cat([count, x.sum(0)]))
    centered = x - sums[1:] / sums[0]
    covariance = all_reduce(centered.T @ centered) / sums[0]
    eigenvalues, basis = torch.linalg.eigh(covariance + EPS * torch.eye(x.shape[1]))
    return centered @ ((basis * eigenvalues.rsqrt()) @ basis.T)


PROVIDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "fused": lambda x: fastwhiten.whiten(x, eps=EPS, process_group="world"),
    "closed form": lambda x: fastwhiten.whiten(
        x, eps=EPS, process_group="world", backend="reference"
    ),
    "eager": eager,
    "local": lambda x: fastwhiten.whiten(x, eps=EPS),
}


def step(rank: int, name: str, shape: tuple[int, int], steps: int) -> tuple[Tensor, Tensor]:
    """Return output and gradient of the last of some forward and backward passes."""
    generator = torch.Generator().manual_seed(rank)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(steps)]
    grad = torch.randn(shape, generator=generator)
    dist.barrier()
    for x in inputs:
        y = PROVIDERS[name](x)
        y.backward(grad)
    gradient = x.grad
    assert gradient is not None
    return y.detach(), gradient


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two processes in one group."""
    pool = Processes(2, tmp_path_factory.mktemp("pair"))
    yield pool
    pool.close()


@pytest.mark.parametrize("provider", list(PROVIDERS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_distributed(benchmark, pair: Processes, shape: tuple[int, int], provider: str) -> None:
    """Time forward and backward on both processes, after comparing with the eager composition."""
    if provider != "local":
        ours, truth = (pair.run(step, p, shape, 1) for p in (provider, "eager"))
        for here, there in zip(ours, truth, strict=True):
            for value, expected in zip(here, there, strict=True):
                assert (value - expected).norm() < 1e-3 * expected.norm()
    benchmark.group = f"two processes of {shape[0]} x {shape[1]}, {STEPS} steps"
    benchmark.extra_info.update(over_two_processes=provider, shape=list(shape), steps=STEPS)
    benchmark.pedantic(pair.run, args=(step, provider, shape, STEPS), rounds=8, warmup_rounds=1)
