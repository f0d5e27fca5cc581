"""How a case is timed on a GPU: caches cold, providers in turns, as a CUDA graph where it can be.

Between two runs a buffer larger than the L2 cache is written, so that inputs come from memory;
providers take turns, so that a clock that falls hits all. What can be captured runs as a CUDA graph
too, without the host's launch times; what waits for the device (``torch.linalg.eigh``) cannot, and
is timed by events around eager calls, as is everybody. Times are medians in microseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Run = Callable[[], Any]
# Verifies a provider; returns what is to be timed, and facts to write down beside its times.
Prepare = Callable[[], tuple[Run, dict[str, float]]]
Entry = dict[str, Any]

FLUSHED_BYTES = 256 << 20  # five times an H100's L2 cache of 50 MB


class NotMeasured(Exception):
    """A provider cannot be measured here; the text says why."""


class NotServed(NotMeasured):
    """A provider is not made for this case: nothing is missing."""


class Timer:
    """Events on a GPU, the clock on a CPU (a dry run)."""

    def __init__(self, device: torch.device) -> None:
        """Allocate what evicts the L2 cache."""
        self.cuda = device.type == "cuda"
        size = FLUSHED_BYTES if self.cuda else 1
        self.flush = torch.empty(size, dtype=torch.int8, device=device)

    def once(self, run: Run) -> float:
        """Return microseconds of one run on a cold cache."""
        self.flush.zero_()
        if not self.cuda:
            started = time.perf_counter()
            run()
            return 1e6 * (time.perf_counter() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)


def capture(run: Run, device: torch.device) -> Run | None:
    """Return a replay of ``run`` as a CUDA graph, or None where it cannot be captured."""
    if device.type != "cuda" or waits(run):
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


def measure(
    prepares: Mapping[str, Prepare], device: torch.device, rounds: int, graphs: bool = True
) -> dict[str, Entry]:
    """Return an entry for every name; nobody's failure keeps the others from being timed.

    Args:
        prepares: ``{name: prepare}``; what raises is written down and not timed.
        device: where the runs take place.
        rounds: in each, every name is timed once, eagerly and as a graph.
        graphs: whether to try CUDA graphs at all.

    Returns:
        Per name ``{"eager_us": ..., "graph_us": ..., **facts}``, or ``{"failed": text}``, or
        ``{"not_measured": reason}``, with ``"by_design": True`` where nothing is missing.
    """
    found: dict[str, Entry] = {}
    ways: dict[tuple[str, str], Run] = {}
    for name, prepare in prepares.items():
        try:
            run, found[name] = prepare()
            run()
            ways[name, "eager_us"] = run
            replay = capture(run, device) if graphs else None
        except NotMeasured as reason:
            found[name] = {"not_measured": str(reason)}
            if isinstance(reason, NotServed):
                found[name]["by_design"] = True
            continue
        except Exception as error:  # whatever a kernel, a compiler or a check raises is a result
            found[name] = failure(error)
            ways.pop((name, "eager_us"), None)
            continue
        if replay is not None:
            ways[name, "graph_us"] = replay
    timer = Timer(device)
    samples: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            if way in samples:
                try:
                    samples[way].append(timer.once(run))
                except Exception as error:
                    found[way[0]] = failure(error)
                    del samples[way]
    for (name, way), values in samples.items():
        if "failed" not in found[name]:
            found[name][way] = statistics.median(values)
    return found


def failure(error: Exception) -> Entry:
    """Return the entry of who raised."""
    lines = str(error).strip().splitlines() or [""]
    return {"failed": f"{type(error).__name__}: {lines[0][:300]}"}
