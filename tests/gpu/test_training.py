"""Training on the device: CUDA graphs, mixed precision with overflow, torch.compile, runs' bits."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE, DRY_RUN, graphed
from tests.gpu.inputs import batch, run
from tests.helpers import plain

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["zca", "pca", "cholesky"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), [((128, 64), 1), ((256, 128), 8), ((32, 50), 1)])
def test_capture_and_replay(shape, groups, kind, kernels) -> None:
    """Forward and backward in one graph; a replay on new numbers gives what eager gives."""
    x, grad = batch(shape).requires_grad_(), batch(shape, seed=5)
    options = {"kind": kind, "groups": groups, "backend": kernels}
    y, dx = torch.empty_like(x), torch.empty_like(x)

    def step() -> None:
        out = fastwhiten.whiten(x, **options)
        dx.copy_(torch.autograd.grad(out, x, grad)[0])
        with torch.no_grad():
            y.copy_(out)

    replay = graphed(step)
    for seed in (7, 8):
        with torch.no_grad():
            x.copy_(batch(shape, seed=seed))
        replay()
        expected = run(x.detach(), grad, kernels, kind=kind, groups=groups)
        assert torch.equal(y, expected[0]) and torch.equal(dx, expected[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_weight": 0.3, "momentum": 0.5}, {"shrinkage": "ledoit-wolf", "groups": 2}],
    ids=["defaults", "blending with a start", "shrinkage"],
)
def test_a_step_of_the_layer_in_a_graph(options, kernels) -> None:
    """Replays move the running statistics, the count and the start as eager steps do.

    One of the batches overflows: the flag that keeps it out of the statistics is the device's.
    """
    layer = ChannelWhitening(32, affine=True, backend=kernels, device=DEVICE, **options)
    static = batch((96, 32))
    y, scale_gradient = torch.empty_like(static), torch.empty(32, device=DEVICE)

    def step() -> None:
        out = layer(static)
        (gradient,) = torch.autograd.grad(out.square().sum(), layer.weight)
        scale_gradient.copy_(gradient)
        y.copy_(out.detach())

    replay = graphed(step)
    twin = copy.deepcopy(layer)
    for seed in (1, 2, 3, 4):
        x = batch((96, 32), seed=seed)
        if seed == 2:
            x[0, 0] = float("inf")
        static.copy_(x)
        replay()
        expected = twin(x)
        (gradient,) = torch.autograd.grad(expected.square().sum(), twin.weight)
        torch.testing.assert_close(y, expected.detach(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(scale_gradient, gradient, rtol=0, atol=0, equal_nan=True)
    for (name, one), other in zip(layer.named_buffers(), twin.buffers(), strict=True):
        assert one.isfinite().all() and torch.equal(one, other), name


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_scaler_recovers_from_overflow(where, kernels) -> None:
    """One overflow: the step is skipped, the scale halved, the statistics kept; then on it goes."""
    model = nn.Sequential(
        nn.Linear(10, 8), ChannelWhitening(8, affine=True, backend=kernels), nn.Linear(8, 3)
    ).to(DEVICE)
    x, label = torch.randn(60, 10).to(DEVICE), torch.arange(60, device=DEVICE) % 3
    x[:, :3] += 2 * nn.functional.one_hot(label, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=256.0)

    def step(x):
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(x).float(), label)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    losses = [step(x) for _ in range(5)]
    before = copy.deepcopy(model.state_dict())
    if where == "input":
        broken = x.clone()
        broken[0, 0] = 1e6
        step(broken)
    else:
        handle = model[1].register_full_backward_pre_hook(
            lambda module, grads: (torch.full_like(grads[0], float("inf")),)
        )
        step(x)
        handle.remove()
    assert scaler.get_scale() == 128.0
    for key, value in model.state_dict().items():
        if where == "input" or not ("running" in key or "num_batches" in key):
            assert torch.equal(value, before[key]), key
    losses += [step(x) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0], losses


# On a GPU everything is compiled; a dry run only traces.
COMPILER = "aot_eager" if DRY_RUN else "inductor"


def test_compiled_without_graph_breaks(kernels) -> None:
    x, grad = batch((128, 64)), batch((128, 64), seed=5)
    compiled = torch.compile(
        lambda x: fastwhiten.whiten(x, backend=kernels),
        fullgraph=True,
        dynamic=False,
        backend=COMPILER,
    )
    y = plain.value_and_grad(lambda x, **_: compiled(x), x, grad)
    torch.testing.assert_close(y, run(x, grad, kernels), rtol=1e-5, atol=1e-5)


def test_a_compiled_layer_follows_its_statistics(kernels) -> None:
    layer = ChannelWhitening(16, groups=2, affine=True, backend=kernels, device=DEVICE)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=COMPILER)
    for seed in range(2):
        x = batch((64, 16), seed=seed)
        torch.testing.assert_close(compiled(x), twin(x), rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(layer.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("groups", [1, 4])
def test_evaluation_follows_its_statistics(groups, kernels) -> None:
    """Eager, and captured: a graph has the matrix of its capture."""
    layer = ChannelWhitening(16, groups=groups, backend=kernels, device=DEVICE)
    layer(batch((64, 16)))
    layer.eval()
    x = batch((8, 16), seed=3)
    with torch.no_grad():
        y = torch.empty_like(x)
        replay = graphed(lambda: y.copy_(layer(x)))
        for scale in (1.0, 2.0):
            layer.running_cov.data.mul_(scale)
            new = copy.deepcopy(layer)
            new.load_state_dict(layer.state_dict())
            assert torch.equal(layer(x), new(x))
            if scale == 1.0:
                x.copy_(batch((8, 16), seed=4))
                replay()
                assert torch.equal(y, layer(x))


BITS = """
import hashlib, sys, torch
from tests.gpu.inputs import batch, run
digest = hashlib.sha256()
for shape, groups in [((128, 64), 1), ((600, 96), 3), ((6, 24, 9, 11), 2), ((40, 100), 1)]:
    for kind in ("zca", "pca", "cholesky"):
        x = batch(shape)
        for t in run(x, x.flip(0), sys.argv[1], kind=kind, groups=groups):
            digest.update(t.cpu().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_same_bits_in_every_process(kernels) -> None:
    """Nothing depends on addresses, on what ran before, or on timing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BITS, kernels]
    runs = [
        subprocess.run(
            command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE
        ).stdout
        for _ in range(2)
    ]
    assert len(runs[0].strip()) == 64 and runs[0] == runs[1]
