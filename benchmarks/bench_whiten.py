"""Whitening, every provider on every scene; each is verified, then all are timed in turns."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from . import memory, report
from .gpu_timing import Run, best_way, spread, take_turns
from .providers import (
    INEXACT,
    OURS,
    PROVIDERS,
    ROTATED,
    WITHOUT_EPS,
    exact,
    make,
    relative_error,
    residual,
    unavailable,
)
from .scenes import GPU_SCENES, SCENES, Scene

# Float32 rounding amplified by the scenes' condition numbers; an error above it is a bug.
FORWARD_TOLERANCE = 1e-3
# The gradient divides by square roots of eigenvalues once more than the output.
GRADIENT_TOLERANCE = 3e-3
CASES = [*SCENES, *(pytest.param(scene, marks=pytest.mark.cuda_only) for scene in GPU_SCENES)]
# Turns of some milliseconds, and seconds after which one sits out: of the two whose ratio is judged
# JUDGED times the first call at least, which is three turns. Whoever needs as long as SLOW has had
# its turn when it was verified, unless that compiled something.
ROUNDS, TURN_US, SECONDS, JUDGED, SLOW = 100, 5e3, {"eager": 2.0, "fused": 2.0}, 2.5, 2.0
COMPILES = ("compiled", "triton")
# Seconds of a scene after which no other rival is begun: of (256, 2048), on a slow machine.
PATIENCE = 45.0


@functools.lru_cache(maxsize=1)  # of the scene at hand: all providers come one after another
def _truth(scene: Scene, device: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the output for the scene's first input, its gradient, and how white it is."""
    y, x_grad = exact(scene.input(device=device), gradient(scene, device), scene.groups)
    return y, x_grad, residual(y, scene.groups)


def gradient(scene: Scene, device: str) -> torch.Tensor:
    """Return a scene's incoming gradient."""
    return torch.randn(scene.shape, generator=torch.Generator().manual_seed(1)).to(device)


def verify(name: str, scene: Scene, y: torch.Tensor, dx: torch.Tensor) -> dict[str, float]:
    """Return errors against float64; raise when an exact provider is not."""
    assert y.isfinite().all(), f"{name}: the output is not finite"
    truth, truth_grad, exact_residual = _truth(scene, str(dx.device))
    found = {"residual": residual(y, scene.groups), "exact_residual": exact_residual}
    if name in (*ROTATED, *WITHOUT_EPS):
        beyond = found["residual"] - exact_residual
        beyond = abs(beyond) if name in ROTATED else beyond
        found |= {} if dx.isfinite().all() else {"grad_error": math.nan}
        assert beyond < FORWARD_TOLERANCE, f"{name} on {scene.name}: {found}"
    elif name not in INEXACT:
        found["error"] = relative_error(y.detach(), truth)
        found["grad_error"] = relative_error(dx, truth_grad)
        assert found["error"] < FORWARD_TOLERANCE, f"{name} on {scene.name}: {found}"
        assert name not in OURS or found["grad_error"] < GRADIENT_TOLERANCE, (scene.name, found)
    return found


def _prepared(
    name: str, scene: Scene, mode: str, device: str
) -> tuple[dict[str, float], Run, float]:
    """Return a provider's errors, what is timed, on fresh inputs, and its first seconds."""
    whiten, grad = make(name, scene, device), gradient(scene, device)
    inputs = [scene.input(seed, device).requires_grad_() for seed in range(4)]
    fresh = itertools.cycle(inputs[1:] + inputs[:1])  # not the one that is in cache

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = whiten(x)
        return y, *torch.autograd.grad(y, x, grad)

    def forward() -> torch.Tensor:
        return whiten(next(fresh).detach())

    started = time.perf_counter()
    y, dx = both(inputs[0])
    first = time.perf_counter() - started
    found = verify(name, scene, y, dx)
    return found, forward if mode == "forward" else (lambda: both(next(fresh))), first


def compare(
    scene: Scene, mode: str, device: str, who: Iterable[str] = tuple(PROVIDERS)
) -> dict[str, dict[str, Any]]:
    """Return by provider its errors and times, or why there are none: "absent", "failed".

    "seconds" and "ratio", eager's time over its own round by round, are medians with quartiles.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in who}
    runs: dict[str, Run] = {}
    seconds: dict[str, float] = {}
    slow: dict[tuple[str, str], list[float]] = {}
    begun = time.perf_counter()
    for name in sorted(found, key=lambda name: name not in (*SECONDS, *OURS)):  # these first
        entry, reason = found[name], unavailable(name, device)
        if time.perf_counter() - begun > PATIENCE and name not in (*SECONDS, *OURS):
            reason = f"the others had taken {PATIENCE:.0f} seconds"
        if reason is not None:
            entry["absent"] = reason
            continue
        try:
            errors, run, first = _prepared(name, scene, mode, device)
        except Exception as error:  # others' packages may do anything: it is reported
            entry["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        entry.update(errors)
        seconds[name] = max(SECONDS.get(name, 0.5), JUDGED * first if name in SECONDS else 0.0)
        if first > SLOW and mode == "both" and name not in (*SECONDS, *COMPILES):
            slow[name, "eager_us"] = [1e6 * first]
        else:
            runs[name] = run
    samples = take_turns(runs, device, ROUNDS, seconds=seconds, turn_us=TURN_US) | slow
    for name, entry in found.items():
        ways = {way: values for (who, way), values in samples.items() if who == name}
        if ways:
            entry["ways"] = {way: spread(values)[0] for way, values in ways.items()}
            values = ways[best_way(entry["ways"])]
            entry["rounds"] = len(values)
            entry["seconds"] = [1e-6 * figure for figure in spread(values)]
            eager = samples.get(("eager", "eager_us"), ())
            entry["ratio"] = spread([a / b for a, b in zip(eager, values, strict=False)])
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("mode", ["both", "forward"])
@pytest.mark.parametrize("scene", CASES, ids=lambda s: s.id)
def bench_whiten(
    benchmark: Any,
    bounds: dict[str, Any],
    scene: Scene,
    mode: str,
    device: str,
    everything: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Compare all on one scene; `extra_info` holds what :func:`compare` returns."""
    started = time.perf_counter()
    found = benchmark.pedantic(compare, args=(scene, mode, device), rounds=1, iterations=1)
    if device == "cpu" and mode == "both" and everything:
        for name in ("eager", "fused"):
            found[name]["peak_inputs"] = memory.peak_in_inputs(name, scene)
    benchmark.extra_info.update(scene=scene.name, mode=mode, device=device, providers=found)
    took = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n{report.line(scene, mode, found, bounds)}; {took:.0f} s", end=" ", flush=True)
    wrong = {name: found[name]["failed"] for name in OURS if "failed" in found[name]}
    assert not wrong, wrong
    missing = [name for name in OURS if device == "cuda" and "absent" in found[name]]
    assert not missing, {name: found[name]["absent"] for name in missing}
