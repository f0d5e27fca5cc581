"""How runs are timed on a GPU: caches cold, in turns, as a CUDA graph where it can be.

Between two runs a buffer larger than the L2 cache is written, so that inputs come from memory; runs
take turns, so that a clock that falls hits all. What can be captured runs as a CUDA graph too,
queued behind that buffer while the device sleeps: its time alone. Everybody is timed by events
around an eager call too, launches and Python included: all there is of what waits for the device,
as ``torch.linalg.eigh`` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]
Times = dict[str, float]

FLUSHED_BYTES = 256 << 20  # five times an H100's L2 cache of 50 MB
QUEUED_CYCLES = 1_000_000  # half a millisecond: longer than the host takes to launch a graph


def measure(
    runs: Mapping[str, Run], device: str, rounds: int, graphs: bool = True
) -> dict[str, Times]:
    """Return ``{name: {"eager_us": ..., "graph_us": ...}}``: medians in microseconds.

    Args:
        runs: what to time, by name.
        device: "cuda", or "cpu" for a dry run, which has no graphs.
        rounds: in each, every run is timed once, eagerly and as a graph.
        graphs: whether to try CUDA graphs at all.
    """
    ways: dict[tuple[str, str], Run] = {}
    for name, run in runs.items():
        run()
        ways[name, "eager_us"] = run
        replay = capture(run) if graphs and device == "cuda" else None
        if replay is not None:
            ways[name, "graph_us"] = replay
    flush = torch.empty(FLUSHED_BYTES if device == "cuda" else 1, dtype=torch.int8, device=device)
    samples: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for (name, way), run in ways.items():
            timed = _host_us if device == "cpu" else TIMED[way]
            samples[name, way].append(timed(run, flush))
    found: dict[str, Times] = {name: {} for name in runs}
    for (name, way), values in samples.items():
        found[name][way] = statistics.median(values)
    return found


def best(times: Times) -> float:
    """Return the faster way's microseconds: as a CUDA graph where it can be one."""
    return min(times[way] for way in ("graph_us", "eager_us") if way in times)


def _host_us(run: Run, flush: Tensor) -> float:
    flush.zero_()
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def _eager_us(run: Run, flush: Tensor) -> float:
    """Return the time between events that begins with the first launch."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda.synchronize()
    return _between(begin, run, end)


def _graph_us(replay: Run, flush: Tensor) -> float:
    """Return the time between events of which all is queued before the device comes to any."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUED_CYCLES)
    flush.zero_()
    return _between(begin, replay, end)


def _between(begin: torch.cuda.Event, run: Run, end: torch.cuda.Event) -> float:
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


TIMED = {"eager_us": _eager_us, "graph_us": _graph_us}


def capture(run: Run) -> Run | None:
    """Return a replay of ``run`` as a CUDA graph, or None where it cannot be captured."""
    if waits(run):
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # something else than waiting that a graph cannot hold
        torch.cuda.synchronize()
        return None
    return graph.replay


def waits(run: Run) -> bool:
    """Return whether ``run`` waits for the device: asked first, a broken capture may linger."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
