"""Times whitening on a GPU, every provider side by side: python -m benchmarks.gpu --output FILE.

Every provider is verified against float64 before it is timed. Between two runs a buffer larger
than the L2 cache is written, so that inputs come from memory; providers take turns, so that a clock
that falls hits all. What can be captured runs as a CUDA graph, without the host's launch times;
what waits for the device (``torch.linalg.eigh``) cannot, and is timed by events around eager calls,
as is everybody a second time. Times are medians in microseconds.

Whole passes first, then every stage alone: CUDA C++, Triton and plain PyTorch side by side, on the
same arguments, each compared with plain PyTorch before it is timed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten import backends
from training.models.resnet import SmallResNet

from . import bench_stages, providers
from .bench_whiten import FORWARD_TOLERANCE
from .scenes import SCENES, Scene

EXTRA = (Scene("(128, 128)", (128, 128), 1, 1.0), Scene("(512, 128)", (512, 128), 1, 1.0))
ROUNDS = 30
# Targets of forward + backward, float32; the time is an H100's.
MICROSECONDS = {"(128, 64)": 200.0}
TIMES_EAGER = {"(128, 64)": 10.0, "(256, 2048)": 8.0}
NAMES = ("eager", "closed-form", "cholesky", "iternorm", "batchnorm", "fused", "triton")
BACKENDS = ("native", "triton", "reference")


class Timer:
    """Events on a GPU, the clock on a CPU (a dry run)."""

    def __init__(self, device: torch.device) -> None:
        """Allocate what evicts the L2 cache."""
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(256 << 20 if self.cuda else 1, dtype=torch.int8, device=device)

    def once(self, run: Callable[[], Any]) -> float:
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


def capture(run: Callable[[], Any]) -> Callable[[], Any] | None:
    """Return a replay of `run` as a CUDA graph, or None where it cannot be captured."""
    if not torch.cuda.is_available():
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # it waits for the device
        torch.cuda.synchronize()
        return None
    return graph.replay


def verified(name: str, scene: Scene, whiten: providers.Forward, x: Tensor, grad: Tensor) -> float:
    """Return the forward error against float64; raise where an exact provider is not."""
    y = whiten(x)
    if name in (*providers.INEXACT, "cholesky"):
        return float("nan")
    truth, _ = providers.exact(x.detach(), grad, scene.groups)
    error = providers.relative_error(y.detach(), truth)
    assert error < FORWARD_TOLERANCE, f"{name} on {scene.name}: {error}"
    return error


def time_scene(scene: Scene, device: torch.device) -> dict[str, Any]:
    """Return {provider: error, eager and graph microseconds} of forward + backward."""
    timer, x = Timer(device), scene.input().to(device).requires_grad_()
    grad = torch.randn(scene.shape, generator=torch.Generator().manual_seed(1)).to(device)
    runs: dict[str, dict[str, Callable[[], Any]]] = {}
    found: dict[str, Any] = {}
    for name in NAMES:
        if providers.unavailable(name, device.type) is not None:
            continue
        whiten = providers.make(name, scene, device.type)
        found[name] = {"error": verified(name, scene, whiten, x, grad)}

        def both(whiten: providers.Forward = whiten) -> None:
            torch.autograd.grad(whiten(x), x, grad)

        both()
        replay = capture(both)
        runs[name] = {"eager_us": both} | ({"graph_us": replay} if replay else {})
    for name, times in medians(runs, timer).items():
        found[name] |= times
    return found


def medians(
    runs: dict[str, dict[str, Callable[[], Any]]], timer: Timer
) -> dict[str, dict[str, float]]:
    """Return {name: {way: median microseconds}}; all take turns in every round."""
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, ways in runs.items():
            for way, run in ways.items():
                samples.setdefault((name, way), []).append(timer.once(run))
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for (name, way), values in samples.items():
        found[name][way] = statistics.median(values)
    return found


def time_stages(scene: Scene, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """Return {stage: {backend: eager and graph microseconds}} of a scene."""
    timer, found = Timer(device), {}
    for stage, arguments in bench_stages.calls_of(scene, device.type).items():
        runs: dict[str, dict[str, Callable[[], Any]]] = {}
        expected = getattr(backends.reference, stage)(*arguments)
        for name in BACKENDS:
            if providers.unavailable(name, device.type) is not None:
                continue
            run = functools.partial(getattr(backends.get(name), stage), *arguments)
            bench_stages.agree(run(), expected)
            replay = capture(run)
            runs[name] = {"eager_us": run} | ({"graph_us": replay} if replay else {})
        found[stage] = medians(runs, timer)
    return found


def training_step(device: torch.device) -> dict[str, float]:
    """Return microseconds of a ResNet-32 step (batch 128, 32 x 32) with and without whitening."""
    steps: dict[str, Callable[[], None]] = {}
    batch, turns = (128, 25) if device.type == "cuda" else (4, 6)
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % 100
    for name in ("without", "with"):
        torch.manual_seed(0)
        trunk = SmallResNet(in_channels=3, width=16, blocks=5)
        layer = fastwhiten.ChannelWhitening(64) if name == "with" else nn.Identity()
        model = nn.Sequential(trunk, layer, nn.Linear(64, 100)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        steps[name] = step
    timer = Timer(device)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        for name, step in steps.items():
            seconds = timer.once(step)
            if turn >= 5:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


def triton_version() -> str | None:
    """Return the version of Triton, None where it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def best(entry: dict[str, float]) -> float:
    """Return the faster way: as a graph where it can be one."""
    return min(entry.get("graph_us", float("inf")), entry["eager_us"])


def missed_targets(results: dict[str, Any]) -> list[str]:
    """Return a line for every target that was not reached."""
    scenes, missed = results["scenes"], []

    def check(held: bool, text: str) -> None:
        if not held:
            missed.append(text)

    for name, found in scenes.items():
        fused, eager = best(found["fused"]), best(found["eager"])
        if name in MICROSECONDS:
            check(fused <= MICROSECONDS[name], f"{name}: {fused:.0f} us > {MICROSECONDS[name]:.0f}")
            slower = fused / found["iternorm"]["eager_us"]
            check(slower <= 1, f"{name}: {slower:.2f} times eager IterNorm's time")
        if name in TIMES_EAGER:
            check(
                eager / fused >= TIMES_EAGER[name],
                f"{name}: {eager / fused:.1f} times faster than eager, not {TIMES_EAGER[name]:.0f}",
            )
    if "(512, 8 x 64)" in scenes and "(512, 64)" in scenes:
        ratio = best(scenes["(512, 8 x 64)"]["fused"]) / best(scenes["(512, 64)"]["fused"])
        check(ratio <= 1.3, f"8 groups of 64 take {ratio:.2f} times one's time, not 1.3")
    step = results["training_step_us"]
    ratio = step["with"] / step["without"]
    check(ratio <= 1.05, f"a ResNet-32 step with whitening takes {ratio:.3f} times one without")
    return missed


def main() -> None:
    """Time every scene, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scene", action="append", help="its name; all by default")
    options = parser.parse_args()
    device = torch.device(options.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a dry run"
    results: dict[str, Any] = {
        "device": gpu,
        "fastwhiten": fastwhiten.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version(),
        # Who is missing, and why: on a CPU, Triton's kernels.
        "not_measured": {
            name: reason
            for name in NAMES
            if (reason := providers.unavailable(name, device.type)) is not None
        },
        "scenes": {},
        "stages": {},
    }
    for scene in (*SCENES, *EXTRA):
        if options.scene and scene.name not in options.scene:
            continue
        found = results["scenes"][scene.name] = time_scene(scene, device)
        shown = (f"{name} {best(entry):.0f}" for name, entry in found.items())
        print(f"{scene.name}: " + ", ".join(shown) + " us", flush=True)
        results["stages"][scene.name] = time_stages(scene, device)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results["training_step_us"] = training_step(device)
    results["missed"] = missed_targets(results)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
