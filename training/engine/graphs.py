"""The training step as CUDA graphs: one launch instead of some hundreds.

A graph repeats the kernels that were recorded, on the same memory. So images and labels of a step
are copied to where the recorded ones were, and what changes from step to step beside them lies on
the device: the rate (`RateSchedule`) and the number of the step (`Meter`). What a step decides on
the host is part of the recording, hence a graph for each kind of step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.data.feed import Examples
from training.engine.distributed import Processes
from training.errors import ConfigError
from training.samplers.base import BatchKind

Step = Callable[[Examples], Tensor]
"""Takes a training step; returns the loss, []."""
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records a function; returns what does the same again, and where the result will be."""


class CudaCapture:
    """Captures on the current stream, which must not be the default one; the graphs share memory.

    They may: each is replayed after the other, and reads nothing that another has left there.
    """

    def __init__(self) -> None:
        """Reserve the memory's name; it is allocated with the first graph."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record a function; nothing is computed yet.

        Raises:
            ConfigError: If it does what cannot be recorded, as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, torch.cuda.current_stream()):
                result = function()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                "cuda_graph: expected a step that never waits for the device, got one that cannot "
                f"be captured ({reason}); leave --cuda-graph out, or choose another whitening."
            ) from error
        return graph.replay, result


@dataclass(frozen=True)
class _Kind:
    """What a step decides on the host."""

    shape: torch.Size
    batch: BatchKind
    phase: int  # of the loss


@dataclass(frozen=True)
class _Recording:
    examples: Examples  # whose images and labels the graph reads
    replay: Replay
    loss: Tensor


class StepGraphs:
    """Takes training steps, by replaying them where that is possible.

    The first step of a kind is taken as any other: libraries set up then what cannot be set up
    during a capture. The second one is captured, and replayed from then on.

    It does not hold whose steps these are: both end together, and the graphs' memory with them.

    Args:
        capture: How a step is recorded.
    """

    def __init__(self, capture: Capture) -> None:
        """Nothing is captured yet."""
        self._capture = capture
        self._recordings: dict[_Kind, _Recording | None] = {}

    def __call__(self, step: Step, examples: Examples, phase: int) -> Tensor:
        """Take a step.

        Args:
            step: Always the same; leaves its results on the device, in tensors that stay.
            examples: Of any kind.
            phase: Of the loss, see `ClassificationLoss.phase`.

        Returns:
            The loss, [], until the next step.
        """
        kind = _Kind(examples.images.shape, examples.batch.kind, phase)
        if kind not in self._recordings:
            self._recordings = {k: r for k, r in self._recordings.items() if k.phase == phase}
            self._recordings[kind] = None
            return step(examples)
        recording = self._recordings[kind]
        if recording is None:
            recording = self._recordings[kind] = self._record(step, examples)
        recording.examples.images.copy_(examples.images)
        recording.examples.labels.copy_(examples.labels)
        recording.replay()
        return recording.loss

    def _record(self, step: Step, examples: Examples) -> _Recording:
        images, labels = examples.images.clone(), examples.labels.clone()
        static = replace(examples, images=images, labels=labels)
        replay, loss = self._capture(lambda: step(static))
        return _Recording(static, replay, loss)


def check_cuda_graph(device: torch.device, processes: Processes) -> None:
    """Check that steps can be captured here.

    Raises:
        ConfigError: If there is no GPU, or there are several processes.
    """
    if device.type != "cuda" or processes.world_size > 1:
        raise ConfigError(
            "cuda_graph: expected false but in one process on a CUDA device, got true on "
            f"{processes.world_size} process(es) on {device.type}; leave --cuda-graph out."
        )


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own inside, after what came before, where the device has streams."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
