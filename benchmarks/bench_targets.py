"""What the kernels for a GPU are judged by: pytest benchmarks/bench_targets.py --device cuda.

Times that an H100 is to reach, float32, forward + backward. Who takes part in a target is verified,
then timed in turns (benchmarks/gpu_timing.py). A target that is missed fails, and so does one with
somebody who is wrong or not there. On a CPU, FASTWHITEN_TEST_DEVICE=cpu tries all that and judges
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import fastwhiten
from tests.gpu.device import DRY_RUN
from training.models.resnet import SmallResNet

from . import bench_eigh, bench_whiten, providers
from .gpu_timing import Run, Times, best, measure
from .scenes import SCENES

IMAGES = 65 if DRY_RUN else 128
ROUNDS = 1 if DRY_RUN else 30
OUTCOMES: dict[str, str] = {}  # by target, as printed in the end


def whole(*who: tuple[str, str]) -> Callable[[str], dict[str, Run]]:
    """Return how forward + backward of ``(provider, scene)`` are made, verified."""

    def runs(device: str) -> dict[str, Run]:
        return {f"{name} {scene}": _pass(name, scene, device) for name, scene in who}

    return runs


def _pass(name: str, title: str, device: str) -> Run:
    providers.require(name, device)
    scene = next(scene for scene in SCENES if scene.name == title)
    whiten = providers.make(name, scene, device)
    x = scene.input(device=device).requires_grad_()
    grad = bench_whiten.gradient(scene, device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        y = whiten(x)
        return y, *torch.autograd.grad(y, x, grad)

    bench_whiten.verify(name, scene, *run())
    return run


def solvers(device: str) -> dict[str, Run]:
    """Return the eigensolvers of one matrix of order 128, verified."""
    providers.require("native", device)
    a = bench_eigh.covariances(1, 128, device)
    runs = {name: lambda s=bench_eigh.SOLVERS[name]: s(a) for name in ("native", "library")}  # type: ignore[misc]
    for solve in runs.values():
        bench_eigh.verified(a, *solve())
    return runs


def training_steps(device: str) -> dict[str, Run]:
    """Return a ResNet-32 step (32 x 32 images, SGD) with and without whitening."""
    providers.require("native", device)
    return {name: _step(name == "with", device) for name in ("with", "without")}


def _step(whitened: bool, device: str) -> Run:
    torch.manual_seed(0)
    images, labels = (
        torch.randn(IMAGES, 3, 32, 32).to(device),
        torch.arange(IMAGES).to(device) % 100,
    )
    layer = fastwhiten.ChannelWhitening(64, backend="native") if whitened else nn.Identity()
    trunk = SmallResNet(in_channels=3, width=16, blocks=5)
    model = nn.Sequential(trunk, layer, nn.Linear(64, 100)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for _ in range(ROUNDS // 6):  # libraries choose their algorithms, buffers are allocated
        step()
    assert step().isfinite(), "the loss is not finite"
    return step


class Target(NamedTuple):
    """A target.

    Attributes:
        text: as in the table.
        bound: of the first one's time in microseconds, or of its ratio to the second one's.
        at_most: whether the figure has to be at most the bound, or at least.
        runs: returns who is timed, by name, for a device.
        eager: whether eager calls are compared, launches and Python included; else each one's best.
        graphs: whether CUDA graphs are tried.
    """

    text: str
    bound: float
    at_most: bool
    runs: Callable[[str], dict[str, Run]]
    eager: bool = False
    graphs: bool = True

    def figure(self, times: Mapping[str, Times]) -> float:
        """Return what is compared with the bound."""
        first, *second = (t["eager_us"] if self.eager else best(t) for t in times.values())
        return first / second[0] if second else first

    def held(self, figure: float) -> bool:
        """Return whether the target is reached."""
        return figure <= self.bound if self.at_most else figure >= self.bound


OURS, EAGER = ("fused", "(128, 64)"), ("eager", "(128, 64)")
TARGETS = (
    Target("(128, 64): at most 200 us", 200.0, True, whole(OURS)),
    Target(
        "(128, 64): at least 10 times faster than eigh + autograd", 10.0, False, whole(EAGER, OURS)
    ),
    Target(
        "(128, 64): no slower than IterNorm T=5, both eager",
        1.0,
        True,
        whole(OURS, ("iternorm", "(128, 64)")),
        eager=True,
    ),
    Target(
        "8 groups of 64: at most 1.3 times one's time",
        1.3,
        True,
        whole(("fused", "(512, 8 x 64)"), ("fused", "(512, 64)")),
    ),
    Target(
        "(256, 2048): at least 8 times faster than eigh + autograd",
        8.0,
        False,
        whole(("eager", "(256, 2048)"), ("fused", "(256, 2048)")),
    ),
    Target(
        "eigensolver of order 128: faster than the library's, or left to it", 1.0, True, solvers
    ),
    # The whole step with its data-parallel launches: as people run it, without a graph.
    Target(
        "ResNet-32 step with whitening: at most 1.05 times one without",
        1.05,
        True,
        training_steps,
        graphs=False,
    ),
)


@pytest.mark.cuda_only
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.text)
def bench_target(benchmark: Any, target: Target, device: str) -> None:
    """Measure who takes part, and judge; `extra_info` holds the figure and everybody's times."""
    OUTCOMES[target.text] = "NOT MEASURED"
    runs = target.runs(device)
    arguments = (runs, device, ROUNDS, target.graphs)
    times = benchmark.pedantic(measure, args=arguments, rounds=1, iterations=1)
    figure = target.figure(times)
    verdict = "reached" if target.held(figure) else "MISSED"
    verdict = "not judged" if device == "cpu" else verdict
    benchmark.extra_info.update(target=target.text, figure=figure, verdict=verdict, times=times)
    OUTCOMES[target.text] = f"{verdict}, {figure:.3g}" + ("" if len(times) > 1 else " us")
    assert verdict != "MISSED", f"{target.text}: {figure:.3g}; {times}"


def lines() -> list[str]:
    """Return a line for every target, once one was begun; none is left out."""
    every = ((target.text, OUTCOMES.get(target.text, "NOT MEASURED")) for target in TARGETS)
    return [f"{text}: {outcome}" for text, outcome in every] if OUTCOMES else []
