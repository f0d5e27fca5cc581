"""Launch configurations: one fixed table, and on request the fastest of a few by measurement.

By default every stage is launched with the first of its configurations, which is a function of
shape class and dtype alone: same input, same bits, on every machine and in every process.
``FASTWHITEN_AUTOTUNE=1`` in the environment times all of them at the first call of a shape class
and keeps the fastest for as long as the process lives. Warps and rows of a tile decide the order of
sums: with it, results may differ in rounding from one process (or rank) to the next.

Which others there are: twice the warps, and half the rows of a tile. Both leave fewer values to a
thread, but more warps also leave it fewer registers; ``tools/triton_resources.py --candidates``
compiles all of them and refuses what spills, and a launcher leaves one out with ``spills``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from .common import power_of_two

Options = dict[str, int]
MOST_WARPS = 16
LEAST_ROWS = 16  # what tl.dot takes
ROUNDS = 5
# The fixed configuration stays unless another is faster by more than what timers are off.
MARGIN = 0.97

_choices: dict[tuple[Any, ...], int] = {}


def enabled() -> bool:
    """Return whether FASTWHITEN_AUTOTUNE asks for measurements.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    value = os.environ.get("FASTWHITEN_AUTOTUNE", "0")
    if value not in ("0", "1"):
        raise ValueError(
            f"FASTWHITEN_AUTOTUNE: expected 0 (fixed configurations) or 1 (measured), got {value!r}"
        )
    return value == "1"


def forget() -> None:
    """Drop all choices: the next call of every shape class measures again."""
    _choices.clear()


def configurations(fixed: Options, spills: tuple[str, ...] = ()) -> list[Options]:
    """Return the fixed configuration and the others that may be faster.

    Args:
        fixed: keyword arguments of the launch: ``num_warps``, ``num_stages``, and ``BLOCK_ROWS`` of
            a pass over rows.
        spills: "warps" or "rows" for a change that would need local memory.
    """
    found = [fixed]
    if "warps" not in spills and fixed["num_warps"] < MOST_WARPS:
        found.append({**fixed, "num_warps": 2 * fixed["num_warps"]})
    if "rows" not in spills and fixed.get("BLOCK_ROWS", 0) > LEAST_ROWS:
        found.append({**fixed, "BLOCK_ROWS": fixed["BLOCK_ROWS"] // 2})
    return found


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return the shortest of a few runs; the first one, which compiles, does not count."""
    run()
    best = float("inf")
    for _ in range(ROUNDS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(torch.cuda.current_stream(device))
            run()
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            best = min(best, 1e-3 * begin.elapsed_time(end))
        else:  # interpreted
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
    return best


def capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured, where nothing can be timed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def launch(
    stage: str,
    shape_class: tuple[Any, ...],
    device: torch.device,
    options: list[Options],
    run: Callable[[Options], Any],
) -> Any:
    """Return the result of ``run`` with the fixed configuration, or with the fastest.

    Args:
        stage: its name.
        shape_class: what else the choice depends on: sizes (rows by their power of two), dtypes,
            flags.
        device: of the tensors.
        options: from :func:`configurations`.
        run: launches the stage and returns its results; it must not change its inputs.
    """
    if len(options) == 1 or not enabled():
        return run(options[0])
    key = (stage, *shape_class, device)
    if key not in _choices:
        if capturing(device):
            return run(options[0])
        times = [seconds(lambda o=o: run(o), device) for o in options]  # type: ignore[misc]
        fastest = min(range(len(options)), key=times.__getitem__)
        _choices[key] = fastest if times[fastest] < MARGIN * times[0] else 0
    return run(options[_choices[key]])


def row_class(x: torch.Tensor, groups: int) -> tuple[Any, ...]:
    """Return the shape class of a pass over rows or planes ``x``."""
    rows = x.numel() // x.shape[1]
    return (power_of_two(rows), x.shape[1], groups, x.dim(), x.dtype)
