"""Which device and which stream: those of the input; anything else is an error that says so."""

from __future__ import annotations

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE, DRY_RUN, occupy, side_stream, synchronize
from tests.gpu.inputs import batch, run

OTHER = torch.device("meta" if DRY_RUN else "cpu")


@pytest.mark.cuda_only
def test_auto_takes_the_kernels() -> None:
    assert fastwhiten.backends.choose("auto", DEVICE) == "native"


def test_weights_on_another_device_are_refused(kernels) -> None:
    with pytest.raises(ValueError, match=r"expected sample_weight on the device of x, .*\.to\("):
        fastwhiten.whiten(
            batch((16, 4)), sample_weight=torch.ones(16, device=OTHER), backend=kernels
        )


def test_a_start_on_another_device_is_refused(kernels) -> None:
    a = torch.eye(4, device=DEVICE)
    with pytest.raises(ValueError, match="expected start like a"):
        fastwhiten.symmetric_eigh(a, start=torch.eye(4, device=OTHER), backend=kernels)


def test_a_layer_on_another_device_is_refused(kernels) -> None:
    layer = ChannelWhitening(4, backend=kernels, device=OTHER)
    with pytest.raises(ValueError, match="expected x on the device of the layer"):
        layer(batch((16, 4)))


@pytest.mark.cuda_only
def test_raw_ops_refuse_tensors_of_two_devices() -> None:
    with pytest.raises(RuntimeError, match="all tensors on one CUDA device"):
        torch.ops.fastwhiten.apply(
            torch.zeros(4, 2, device=DEVICE), torch.zeros(2), torch.zeros(1, 2, 2), None, None
        )


@pytest.mark.cuda_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_input(kernels) -> None:
    x = batch((128, 64)).to("cuda:1")
    assert torch.cuda.current_device() == 0
    y, dx = run(x, x, kernels)
    assert y.device == dx.device == x.device and torch.cuda.current_device() == 0
    here = run(x.to("cuda:0"), x.to("cuda:0"), kernels)
    assert torch.equal(y.cpu(), here[0].cpu()) and torch.equal(dx.cpu(), here[1].cpu())


# Every way to a kernel: one launch for all, the stages, maps, the sample side, wide groups.
@pytest.mark.parametrize("shape", [(128, 64), (600, 96), (6, 24, 9, 11), (40, 100), (300, 160)])
def test_kernels_run_on_the_current_stream(shape, kernels) -> None:
    """What the stream is about to write is read after that: on another stream, it would not be."""
    new, grad = batch(shape), batch(shape, seed=5)
    expected = run(new, grad, kernels)
    x, other_grad = torch.zeros_like(new), torch.zeros_like(grad)
    synchronize()
    with side_stream():
        occupy()
        x.copy_(new)
        other_grad.copy_(grad)
        y, dx = run(x, other_grad, kernels)
    synchronize()
    assert torch.equal(y, expected[0]) and torch.equal(dx, expected[1])


def test_streams_side_by_side(kernels) -> None:
    """Scratch memory is not shared between streams."""
    inputs = [batch((512, 64), seed=seed) for seed in range(4)]
    expected = [run(x, x, kernels) for x in inputs]
    streams = [] if DRY_RUN else [torch.cuda.Stream() for _ in inputs]
    synchronize()
    results = []
    for _ in range(2 if DRY_RUN else 10):
        for i, x in enumerate(inputs):
            if DRY_RUN:
                results.append(run(x, x, kernels))
                continue
            with torch.cuda.stream(streams[i]):
                results.append(run(x, x, kernels))
    synchronize()
    for i, (y, dx) in enumerate(results):
        assert torch.equal(y, expected[i % 4][0]) and torch.equal(dx, expected[i % 4][1])
