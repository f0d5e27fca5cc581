"""A whole training step with each layer before the classifier: what does whitening cost?

    python -m benchmarks.bench_training_step [--rounds 20] [--json FILE] [--cpu-time]

Forward, loss, backward and SGD update on a resident batch of random images. The layers take turns,
round by round, so that a machine that slows down slows all of them; the cost of a layer is the
median over rounds of its step minus the step without a layer in the same round. Because that is a
small difference of large times, the layer's forward and backward by themselves, on features of the
same shape, are timed too. On a machine that has other work, --cpu-time counts the seconds that one
thread spent computing instead of the time that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from training.config import TrainConfig
from training.config.model import ModelConfig
from training.models import WhitenedClassifier, build_model

LAYERS = ("none", "batchnorm", "eager", "fused")
BATCH = 128
CLASSES = 100


@dataclass(frozen=True)
class Case:
    """A network and the images that it is trained on.

    Attributes:
        name: Name on the command line.
        channels: Colour channels.
        size: Side of the images in pixels.
        target: Largest share of a CPU step that fused whitening may add, or None.
    """

    name: str
    channels: int
    size: int
    target: float | None = None

    def model(self, whitening: str) -> WhitenedClassifier:
        """Build the network with a layer before its classifier; the weights are the same."""
        config = TrainConfig(whitening=whitening, loss="ce", model=ModelConfig(self.name))
        return build_model(config, self.channels, CLASSES, seed=0).train()


CASES = (Case("resnet-32", 3, 32, target=0.02), Case("small-resnet", 3, 32))


def build_step(case: Case, whitening: str) -> Callable[[], None]:
    """Return one training step on a fixed batch."""
    model = case.model(whitening)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, case.channels, case.size, case.size)
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)

    def step() -> None:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def build_layer(case: Case, whitening: str) -> Callable[[], None]:
    """Return the layer's forward and backward on features of the network's shape."""
    layer = case.model(whitening).whitening
    dim = case.model("none").classifier.in_features
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator) / dim**0.5
    features = (torch.randn(BATCH, dim, generator=generator) @ mix).relu().requires_grad_()
    gradient = torch.randn(BATCH, dim, generator=generator)

    def both() -> None:
        features.grad = None
        layer(features).backward(gradient)

    return both


def measure(
    case: Case, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Time all layers in turns; seconds of the clock."""

    def seconds(function: Callable[[], None]) -> float:
        start = clock()
        function()
        return clock() - start

    steps = {name: build_step(case, name) for name in LAYERS}
    times: dict[str, list[float]] = {name: [] for name in LAYERS}
    for step in steps.values():
        step()  # buffers, thread pools
    for turn in range(rounds):
        for place in range(len(LAYERS)):  # each layer comes first as often as the others
            name = LAYERS[(place + turn) % len(LAYERS)]
            times[name].append(seconds(steps[name]))
    found: dict[str, Any] = {}
    for name in LAYERS:
        median = statistics.median(times[name])
        extra = [a - b for a, b in zip(times[name], times["none"], strict=True)]
        call = build_layer(case, name)
        call()
        alone = 0.0 if name == "none" else statistics.median(seconds(call) for _ in range(50))
        baseline = statistics.median(times["none"])
        found[name] = {
            "step": median,
            "images_per_second": BATCH / median,
            "added": statistics.median(extra) / baseline,
            "layer": alone,
            "layer_share": alone / baseline,
        }
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a markdown table."""
    lines = [
        "| model | layer | step | images/s | added to a step | layer alone | of a step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, layers in results.items():
        for name, figures in layers.items():
            lines.append(
                f"| {model} | {name} | {1e3 * figures['step']:.1f} ms "
                f"| {figures['images_per_second']:.0f} | {100 * figures['added']:+.2f} % "
                f"| {1e6 * figures['layer']:.0f} us | {100 * figures['layer_share']:.2f} % |"
            )
    return "\n".join(lines)


def misses(results: dict[str, dict[str, Any]]) -> list[str]:
    """Say which targets were missed, by the layer's own time."""
    found = []
    for case in CASES:
        share = results[case.name]["fused"]["layer_share"] if case.name in results else 0.0
        if case.target is not None and share > case.target:
            found.append(
                f"{case.name}: fused whitening is {100 * share:.2f} % of a step, target "
                f"{100 * case.target:.0f} %"
            )
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def bench_training_step(benchmark, case: Case) -> None:
    """Take turns with all layers; `extra_info` holds the figures of each."""
    rounds = 1 if benchmark.disabled else 10
    found = benchmark.pedantic(measure, args=(case, rounds), rounds=1)
    benchmark.extra_info.update(training_step=case.name, layers=found)


def main() -> None:
    """Measure, print the table, and say which targets were missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each layer")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of one computing thread")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    results = {case.name: measure(case, options.rounds, clock) for case in CASES}
    print(table(results))
    print("\n".join(misses(results)) or "every target reached")
    if options.json is not None:
        facts = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "clock": "CPU time" if options.cpu_time else "wall time",
            "batch": BATCH,
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
