"""What benchmarks/gpu.py times, in the order in which time may run out: targets first.

A section's cases have names; a case has runs by name. Preparing a run verifies it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten import backends
from training.models.resnet import SmallResNet

from . import bench_eigh, bench_stages, products, providers
from .bench_whiten import FORWARD_TOLERANCE, ROTATED
from .gpu_timing import NotMeasured, NotServed, Prepare, Run
from .scenes import SCENES, Scene

PROVIDERS = ("eager", "closed-form", "cholesky", "iternorm", "batchnorm", "fused", "triton")
# The gradient divides by square roots of eigenvalues once more than the output.
GRADIENT_TOLERANCE = 3e-3
OURS = ("fused", "triton", "closed-form")
SOLVERS = ("native", "triton", "library")
BACKENDS = ("native", "triton", "reference")
STEPS = ("without", "with")

# Those of the targets come first.
TARGETED = ("(128, 64)", "(256, 2048)", "(512, 64)", "(512, 8 x 64)")
EXTRA = (Scene("(128, 128)", (128, 128), 1, 1.0), Scene("(512, 128)", (512, 128), 1, 1.0))
EIGENSYSTEMS = ((1, 128), (1, 64), (8, 64), (1, 16), (64, 16), (512, 64), (8, 128))
# A small run: every kind of case once, in sizes that a CPU does in seconds.
SMALL_EIGENSYSTEMS = ((1, 64), (2, 128))
SMALL_SHAPES = ((96, 256), (2, 256, 7, 7))


@dataclass(frozen=True)
class Case:
    """What is timed side by side.

    Attributes:
        section: "whole", "eigensolvers", "training step", "stages" or "products".
        name: of the case, unique in its section.
        runs: names of who takes part.
        prepare: returns ``{name: prepare}`` for a device.
        graphs: whether CUDA graphs are tried.
    """

    section: str
    name: str
    runs: tuple[str, ...]
    prepare: Callable[[torch.device], dict[str, Prepare]]
    graphs: bool = True


def plan(small: bool = False) -> list[Case]:
    """Return the cases; ``small``: a few of every section, for a try."""
    scenes = sorted((*SCENES, *EXTRA), key=lambda s: s.name not in TARGETED)
    systems, shapes = EIGENSYSTEMS, products.SHAPES
    if small:
        scenes = [s for s in scenes if s.name in ("(128, 64)", "(512, 64)", "(512, 8 x 64)")]
        systems, shapes = SMALL_EIGENSYSTEMS, SMALL_SHAPES
    cases = [Case("whole", s.name, PROVIDERS, partial(whole, s)) for s in scenes]
    cases += [
        Case("eigensolvers", f"{batch} x {size}", SOLVERS, partial(eigensolvers, batch, size))
        for batch, size in systems
    ]
    # The whole step with its data-parallel launches: as people run it, without a graph.
    images = 4 if small else 128
    cases.append(
        Case("training step", "ResNet-32", STEPS, partial(training_step, images), graphs=False)
    )
    cases += [
        Case("products", f"{list(shape)} {stage}", ("ours", "library"), prepare)
        for shape in shapes
        for stage in products.STAGES
        for prepare in [partial(products.prepares, shape, stage)]
    ]
    for scene in scenes[:1] if small else scenes:
        names = bench_stages.SAMPLE_STAGES if scene.sample_side else bench_stages.FEATURE_STAGES
        cases += [
            Case("stages", f"{scene.name} {stage}", BACKENDS, partial(stages, scene, stage))
            for stage in names
        ]
    return cases


def _require(name: str, device: torch.device) -> None:
    reason = providers.unavailable(name, device.type)
    if reason is not None:
        raise NotMeasured(reason)


def whole(scene: Scene, device: torch.device) -> dict[str, Prepare]:
    """Forward + backward of every provider."""
    x = scene.input().to(device).requires_grad_()
    grad = torch.randn(scene.shape, generator=torch.Generator().manual_seed(1)).to(device)
    truth = providers.exact(x.detach(), grad, scene.groups)

    def prepare(name: str) -> tuple[Run, dict[str, float]]:
        _require(name, device)
        whiten = providers.make(name, scene, device.type)
        y = whiten(x)
        (dx,) = torch.autograd.grad(y, x, grad)
        facts = verified(name, scene, (y.detach(), dx), truth)
        return lambda: torch.autograd.grad(whiten(x), x, grad), facts

    return {name: partial(prepare, name) for name in PROVIDERS}


def verified(
    name: str, scene: Scene, results: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Return errors of output and gradient against float64.

    Raises:
        AssertionError: who should whiten exactly does not.
    """
    if name in providers.INEXACT:
        return {}
    if name in ROTATED:
        found, exact = (providers.residual(y, scene.groups) for y in (results[0], truth[0]))
        assert abs(found - exact) < FORWARD_TOLERANCE, f"whiteness {found:.1e}, not {exact:.1e}"
        return {"residual": found}
    error, grad_error = map(providers.relative_error, results, truth)
    assert error < FORWARD_TOLERANCE, f"output wrong by {error:.1e}"
    if name in OURS:
        assert grad_error < GRADIENT_TOLERANCE, f"gradient wrong by {grad_error:.1e}"
    return {"error": error, "grad_error": grad_error}


def eigensolvers(batch: int, size: int, device: torch.device) -> dict[str, Prepare]:
    """Return the eigensolvers on covariances ``[batch, size, size]``."""
    a = bench_eigh.covariances(batch, size, device.type)

    def prepare(name: str) -> tuple[Run, dict[str, float]]:
        _require(name, device)
        if name == "triton" and size > bench_eigh.TRITON_UP_TO:
            raise NotServed(bench_eigh.TRITON_BEYOND)
        solve = bench_eigh.SOLVERS[name]
        return lambda: solve(a), bench_eigh.verified(a, *solve(a))

    return {name: partial(prepare, name) for name in SOLVERS}


def stages(scene: Scene, stage: str, device: torch.device) -> dict[str, Prepare]:
    """One stage of every backend, on the arguments that the stages before it left."""
    arguments = bench_stages.calls_of(scene, device.type)[stage]
    expected = getattr(backends.reference, stage)(*arguments)

    def prepare(name: str) -> tuple[Run, dict[str, float]]:
        _require(name, device)
        run = partial(getattr(backends.get(name), stage), *arguments)
        bench_stages.agree(run(), expected)
        return run, {}

    return {name: partial(prepare, name) for name in BACKENDS}


def training_step(batch: int, device: torch.device) -> dict[str, Prepare]:
    """Return a ResNet-32 step (32 x 32 images, SGD) with and without whitening."""
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(batch, device=device) % 100

    def prepare(name: str) -> tuple[Run, dict[str, float]]:
        torch.manual_seed(0)
        trunk = SmallResNet(in_channels=3, width=16, blocks=5)
        layer = fastwhiten.ChannelWhitening(64) if name == "with" else nn.Identity()
        model = nn.Sequential(trunk, layer, nn.Linear(64, 100)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step() -> Any:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(5):  # libraries choose their algorithms, buffers are allocated
            loss = step()
        assert loss.isfinite(), "the loss is not finite"
        return step, {}

    return {name: partial(prepare, name) for name in STEPS}
