"""The public functions and the layer on tensors of the device: results, gradients, bits."""

from __future__ import annotations

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE, DRY_RUN, library_waits
from tests.gpu.inputs import batch, run
from tests.helpers import plain
from tests.helpers.reference_error import relative_error

# (shape, groups): rows, groups that share a tile, the widths of every eigensolver, maps, M < D
CASES = [
    ((67, 13), 1),
    ((128, 64), 1),
    ((512, 512), 8),
    ((300, 128), 1),
    ((600, 200), 1),
    ((700, 96), 24),
    ((6, 24, 17, 19), 2),
    ((40, 200), 1),
    ((100, 300), 2),
]
KINDS = ["zca", "pca", "cholesky"]
cuda_only = pytest.mark.cuda_only


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_float32_against_float64(shape, groups, kind, kernels) -> None:
    x, grad = batch(shape), batch(shape, seed=5)
    ours = run(x, grad, kernels, kind=kind, groups=groups)
    options = {"kind": kind, "groups": groups, "backend": "reference"}
    truth = plain.value_and_grad(fastwhiten.whiten, x.double(), grad.double(), **options)
    yardstick = plain.value_and_grad(fastwhiten.whiten, x, grad, **options)
    for name, value, ref, same in zip("yd", ours, truth, yardstick, strict=True):
        if kind == "pca":  # its gradient divides by gaps, which wide groups have none of
            assert relative_error(value, ref) < 1e-2 or (name == "d" and shape[1] // groups > 24)
        else:
            floor = 64 * torch.finfo(torch.float32).eps * shape[1] ** 0.5
            assert relative_error(value, ref) <= 4 * relative_error(same, ref) + floor


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
@pytest.mark.parametrize("shape", [(20, 5), (3, 6, 7), (4, 7)])
def test_gradients(shape, kind, kernels) -> None:
    x = batch(shape, torch.float64).requires_grad_()
    weight = torch.rand(shape[0], device=DEVICE, dtype=torch.float64) + 0.5

    def whiten(x):
        return fastwhiten.whiten(
            x, kind=kind, sample_weight=weight, shrinkage=0.1, backend=kernels, eps=1e-2
        )

    torch.autograd.gradcheck(whiten, x)
    torch.autograd.gradgradcheck(whiten, x)


@pytest.mark.parametrize("shrinkage", [None, 0.3, "oas", "ledoit-wolf"])
@pytest.mark.parametrize("batch_weight", [1.0, 0.3])
def test_layer_equals_the_reference(batch_weight, shrinkage, kernels) -> None:
    layers = [
        ChannelWhitening(
            24, groups=2, affine=True, batch_weight=batch_weight, shrinkage=shrinkage, backend=name
        ).to(DEVICE, torch.float64)
        for name in (kernels, "reference")
    ]
    for step in range(3):
        x = batch((80, 24), torch.float64, seed=step)
        inputs = [x.clone().requires_grad_() for _ in layers]
        outputs = [layer(value) for layer, value in zip(layers, inputs, strict=True)]
        for y in outputs:
            y.pow(3).sum().backward()
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-7, atol=1e-8)
    for one, other in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_same_bits_every_time(shape, groups, kind, kernels) -> None:
    x, grad = batch(shape), batch(shape, seed=5)
    first = run(x, grad, kernels, kind=kind, groups=groups)
    for _ in range(1 if DRY_RUN else 5):
        run(1e20 * x, grad, kernels, kind=kind, groups=groups)  # other numbers in reused memory
        again = run(x, grad, kernels, kind=kind, groups=groups)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("shape", "groups"), [((64, 12), 4), ((300, 256), 2), ((20, 128), 2)])
def test_a_group_that_is_not_finite_is_nan_alone(shape, groups, bad, kernels) -> None:
    x = batch(shape)
    x[3, 1] = bad
    y = fastwhiten.whiten(x, groups=groups, backend=kernels)
    size = shape[1] // groups
    assert y[:, :size].isnan().all() and y[:, size:].isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_are_read_in_place(memory_format, kernels) -> None:
    x = batch((6, 24, 17, 19)).contiguous(memory_format=memory_format)
    y = fastwhiten.whiten(x, backend=kernels)
    assert y.is_contiguous(memory_format=memory_format)
    other = fastwhiten.whiten(x.contiguous(), backend=kernels)
    torch.testing.assert_close(y, other, rtol=1e-4, atol=1e-4)


@cuda_only
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_nothing_waits_for_the_device(shape, groups, kernels) -> None:
    """Our eigensolvers do not, nor does the batched one of cuSOLVER; torch.linalg.eigh does."""
    rows = torch.Size(shape).numel() // shape[1]
    wide = min(rows, shape[1] // groups) > {"native": 128, "triton": 64}[kernels]
    if wide and (kernels == "triton" or library_waits()):
        pytest.skip("torch.linalg.eigh")
    x, grad = batch(shape).requires_grad_(), batch(shape, seed=5)
    fastwhiten.whiten(x, groups=groups, backend=kernels).backward(grad)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastwhiten.whiten(x, groups=groups, backend=kernels).backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
