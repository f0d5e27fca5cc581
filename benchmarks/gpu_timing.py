"""How runs are timed: in turns; on a GPU with caches cold, as a CUDA graph where it can be.

Runs take turns, so that a clock that falls, or other work of the machine, hits all. On a GPU a
buffer larger than the L2 cache is written between two, so that inputs come from memory. What can
be captured runs as a CUDA graph too, queued behind that buffer while the device sleeps: its time
alone. Everybody is timed by events around an eager call too, launches and Python included: all
there is of what waits for the device, as ``torch.linalg.eigh`` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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

    Arguments are those of :func:`take_turns`; every run is made once before.
    """
    for run in runs.values():
        run()
    found: dict[str, Times] = {name: {} for name in runs}
    for (name, way), values in take_turns(runs, device, rounds, graphs).items():
        found[name][way] = statistics.median(values)
    return found


def take_turns(
    runs: Mapping[str, Run],
    device: str,
    rounds: int,
    graphs: bool = True,
    seconds: Mapping[str, float] | None = None,
    turn_us: float = 0.0,
) -> dict[tuple[str, str], list[float]]:
    """Return the microseconds of every round by name and way, "eager_us" or "graph_us".

    Args:
        runs: what to time, by name; each was made before.
        device: "cuda", or "cpu", which has no graphs.
        rounds: in each, every run is timed once, eagerly and as a graph.
        graphs: whether to try CUDA graphs at all.
        seconds: by name, the time after which a run sits out; it takes part in the first round.
        turn_us: on a CPU, what a turn is filled with: a call that does not count, for another's
            data are in the cache, then as many as fit, whose mean counts; one that takes longer
            is alone.
    """
    ways: dict[tuple[str, str], Run] = {}
    for name, run in runs.items():
        ways[name, "eager_us"] = run
        replay = capture(run) if graphs and device == "cuda" else None
        if replay is not None:
            ways[name, "graph_us"] = replay
    size = FLUSHED_BYTES if device == "cuda" else 0
    flush = torch.empty(size, dtype=torch.int8, device=device)
    samples: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    spent = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for (name, way), run in ways.items():
            if seconds is not None and spent[name, way] >= seconds[name]:
                continue
            begun = time.perf_counter()
            taken = _host_us(run, turn_us) if device == "cpu" else TIMED[way](run, flush)
            samples[name, way].append(taken)
            spent[name, way] += time.perf_counter() - begun
    return samples


def spread(values: Sequence[float]) -> list[float]:
    """Return the median and, of two values at least, the quartiles.

    Example:
        >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
        [3.0, 2.0, 4.0]
    """
    if len(values) < 2:
        return [*values]
    first, median, third = statistics.quantiles(values, method="inclusive")
    return [median, first, third]


def best_way(times: Times) -> str:
    """Return the faster way: as a CUDA graph where it can be one."""
    return min((way for way in ("graph_us", "eager_us") if way in times), key=times.__getitem__)


def best(times: Times) -> float:
    """Return the faster way's microseconds."""
    return times[best_way(times)]


def _host_us(run: Run, turn_us: float) -> float:
    calls = 1
    while True:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        taken = 1e6 * (time.perf_counter() - started) / calls
        if calls > 1 or 2 * taken > turn_us:
            return taken
        calls = int(turn_us / taken)


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
