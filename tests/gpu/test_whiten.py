"""The public functions and the layer on the device: results, gradients, bits, streams, graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE
from tests.helpers import plain, spectra
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


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0):
    rows = torch.Size(shape).numel() // shape[1]
    x = spectra.random(rows, shape[1], seed).reshape(shape[0], *shape[2:], shape[1])
    return x.movedim(-1, 1).contiguous().to(DEVICE, dtype)


def run(x, grad, backend, **options):
    return plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend, **options)


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
    for _ in range(5):
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
def test_auto_takes_the_kernels() -> None:
    assert fastwhiten.backends.choose("auto", DEVICE) == "native"


@cuda_only
@pytest.mark.parametrize(("shape", "groups"), [c for c in CASES if min(c[0][0], c[0][1]) <= 128])
def test_nothing_waits_for_the_device(shape, groups, kernels) -> None:
    """Up to 128 channels of a group (or rows) the eigensolver is ours; the library's waits."""
    rows = torch.Size(shape).numel() // shape[1]
    if min(rows, shape[1] // groups) > {"native": 128, "triton": 64}[kernels]:
        pytest.skip("the library's eigensolver")
    x, grad = batch(shape).requires_grad_(), batch(shape, seed=5)
    fastwhiten.whiten(x, groups=groups, backend=kernels).backward(grad)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastwhiten.whiten(x, groups=groups, backend=kernels).backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), [((128, 64), 1), ((256, 128), 8), ((32, 100), 1)])
def test_capture_and_replay(shape, groups, kind, kernels) -> None:
    """Forward and backward in one graph; a replay on new numbers gives what eager gives."""
    x, grad = batch(shape).requires_grad_(), batch(shape, seed=5)
    options = {"kind": kind, "groups": groups, "backend": kernels}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            x.grad = None
            fastwhiten.whiten(x, **options).backward(grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    x.grad = None
    with torch.cuda.graph(graph):
        y = fastwhiten.whiten(x, **options)
        y.backward(grad)
    for seed in (7, 8):
        with torch.no_grad():
            x.copy_(batch(shape, seed=seed))
        graph.replay()
        expected = run(x.detach(), grad, kernels, kind=kind, groups=groups)
        assert torch.equal(y, expected[0]) and torch.equal(x.grad, expected[1])


@cuda_only
def test_streams_side_by_side(kernels) -> None:
    """Kernels run on the current stream, and scratch memory is not shared between streams."""
    inputs = [batch((512, 64), seed=seed) for seed in range(4)]
    expected = [run(x, x, kernels) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(x, x, kernels))
    torch.cuda.synchronize()
    for i, (y, dx) in enumerate(results):
        assert torch.equal(y, expected[i % 4][0]) and torch.equal(dx, expected[i % 4][1])


@cuda_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_input(kernels) -> None:
    x = batch((128, 64)).to("cuda:1")
    assert torch.cuda.current_device() == 0
    y = fastwhiten.whiten(x, backend=kernels)
    assert y.device == x.device and torch.cuda.current_device() == 0
    assert torch.equal(y.cpu(), fastwhiten.whiten(x.to("cuda:0"), backend=kernels).cpu())


@cuda_only
def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="all tensors on one CUDA device"):
        torch.ops.fastwhiten.apply(
            torch.zeros(4, 2, device=DEVICE), torch.zeros(2), torch.zeros(1, 2, 2), None, None
        )


@cuda_only
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_scaler_recovers_from_overflow(where) -> None:
    model = nn.Sequential(nn.Linear(10, 8), ChannelWhitening(8, affine=True), nn.Linear(8, 3))
    model.to(DEVICE)
    x, label = torch.randn(60, 10, device=DEVICE), torch.arange(60, device=DEVICE) % 3
    x[:, :3] += 2 * nn.functional.one_hot(label, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)

    def step(x):
        with torch.autocast("cuda", dtype=torch.float16):
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


@cuda_only
def test_compiled_without_graph_breaks(kernels) -> None:
    x, grad = batch((128, 64)), batch((128, 64), seed=5)
    compiled = torch.compile(
        lambda x: fastwhiten.whiten(x, backend=kernels), fullgraph=True, dynamic=False
    )
    y = plain.value_and_grad(lambda x, **_: compiled(x), x, grad)
    expected = run(x, grad, kernels)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def _rank(rank: int, port: int) -> None:
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), ChannelWhitening(8), nn.Linear(8, 3)).to(rank)
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(rank)
    for _ in range(3):
        parallel(torch.randn(32, 10, device=rank)).pow(2).sum().backward()
    gradient = model[0].weight.grad.clone()
    torch.distributed.broadcast(gradient, 0)
    assert torch.equal(gradient, model[0].weight.grad)
    torch.distributed.destroy_process_group()


@cuda_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_processes_train() -> None:
    torch.multiprocessing.spawn(_rank, args=(29511,), nprocs=2)
