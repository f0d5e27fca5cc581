"""The device under test: compiled stages behind CPU tensors, streams and graphs.

``FASTWHITEN_TEST_DEVICE=cpu`` is a dry run: the same tests on the CPU's kernels, where there is no
GPU. A stream is then nothing and a graph's replay the step itself, so that all code of the tests
runs but what needs CUDA itself (``cuda_only``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastwhiten import backends

DEVICE = torch.device(os.environ.get("FASTWHITEN_TEST_DEVICE", "cuda"))
DRY_RUN = DEVICE.type == "cpu"
# For modules that take their tests from elsewhere: thousands of skipped tests would say no more.
ABSENT = not DRY_RUN and not torch.cuda.is_available()
REASON = "needs a CUDA device"

if DRY_RUN:  # in the processes, too, that tests start
    from tests.helpers import interpreter as _interpreter  # noqa: F401, mends that of old Tritons


class DeviceStages:
    """The stages of a backend with arguments moved to the device, and results back."""

    def __init__(self, name: str) -> None:
        self._stages = backends.get(name)

    def __getattr__(self, name: str) -> Any:
        stage = getattr(self._stages, name)

        def run(*arguments: Any) -> Any:
            moved = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]
            results = stage(*moved)
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(result.cpu() for result in results)

        return run


@contextlib.contextmanager
def side_stream() -> Iterator[None]:
    """Work on another stream than the default one, after and before what that one does."""
    if DRY_RUN:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Return a replay of ``step`` as a CUDA graph, after three runs of it.

    ``step`` reads and writes tensors that are there before and stay.
    """
    with side_stream():
        for _ in range(3):
            step()
    if DRY_RUN:
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def library_waits() -> bool:
    """Return whether wide eigensystems are torch.linalg.eigh's, for want of a newer cuSOLVER."""
    return "torch.linalg.eigh" in torch.ops.fastwhiten.library_eigensolver()


def occupy() -> None:
    """Keep the current stream busy for some 20 ms."""
    if not DRY_RUN:
        torch.cuda._sleep(30_000_000)  # clock cycles


def synchronize() -> None:
    """Wait for the device."""
    if not DRY_RUN:
        torch.cuda.synchronize()
