"""The last step's eigenvectors as a start: passed on, remembered, and no state.

That it saves sweeps, and that one which is not orthogonal is none, is tested on the eigensolvers
that take one: those of the CUDA kernels, in tests/csrc/test_eigh.py; on a GPU, tests/gpu.
"""

import copy

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten import ChannelWhitening, backends, warm_start
from tests.csrc.eigensystems import solve
from tests.csrc.emulated_stages import EmulatedStages
from tests.helpers import spectra
from tests.helpers.reference_error import assert_close_to_fp64

C, G, ROWS = 12, 2, 40
D = C // G


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a device whose eigensolver takes a start: layers remember as on a GPU."""
    monkeypatch.setattr(backends, "takes_start", lambda name, device, size, dtype: name == "native")


@pytest.fixture
def emulated(gains: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernels, emulated, are the native backend."""
    monkeypatch.setitem(backends.BACKENDS, "native", EmulatedStages())


def make(backend: str = "native", **options) -> ChannelWhitening:
    given = {"groups": G, "batch_weight": 0.1, "backend": backend, **options}
    return ChannelWhitening(C, **given).train()


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [spectra.random(ROWS, C, seed).to(dtype) for seed in range(count)]


def step_pair(dtype: torch.dtype, size: int = D) -> tuple[Tensor, Tensor]:
    """Blended covariances ``[3, D, D]`` of two consecutive steps."""
    rows = torch.stack([spectra.random(30 * size, size, seed) for seed in range(3)])
    old = rows[:, : 28 * size].mT @ rows[:, : 28 * size] / (28 * size)
    new = rows[:, 28 * size :].mT @ rows[:, 28 * size :] / (2 * size)
    return old.to(dtype), (0.9 * old + 0.1 * new).to(dtype)


@pytest.mark.parametrize(
    "backend", ["reference", "native", pytest.param("triton", marks=pytest.mark.interpret)]
)
def test_solvers_that_take_no_start_ignore_it_and_count_nothing(backend: str) -> None:
    """Triton's begins anew: with a start its kernel would need local memory."""
    before, after = step_pair(torch.float64)
    start = fastwhiten.symmetric_eigh(before, backend=backend)[1]
    cold = fastwhiten.symmetric_eigh(after, backend=backend)
    warm = fastwhiten.symmetric_eigh(after, start=start, backend=backend)
    assert torch.equal(cold[0], warm[0]) and torch.equal(cold[1], warm[1])
    sweeps = fastwhiten.symmetric_eigh_sweeps(after.reshape(3, 1, D, D), backend=backend)
    assert sweeps.tolist() == [[-1], [-1], [-1]]


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected start like a, \[3, 6, 6\] torch.float32"):
        fastwhiten.symmetric_eigh(step_pair(torch.float32)[0], start=torch.eye(D))


def test_start_is_vmapped_and_has_no_gradient(backend: str) -> None:
    before, after = step_pair(torch.float64)
    start = torch.linalg.eigh(before)[1].requires_grad_()

    def trace_of_root(a: Tensor, start: Tensor) -> Tensor:
        values, _ = fastwhiten.symmetric_eigh(a, start=start, backend=backend)
        return values.sqrt().sum()

    one_by_one = [trace_of_root(a, s) for a, s in zip(after, start, strict=True)]
    torch.testing.assert_close(torch.vmap(trace_of_root)(after, start), torch.stack(one_by_one))
    shared = torch.vmap(trace_of_root, in_dims=(0, None))(after, start[0])
    torch.testing.assert_close(shared, torch.stack(one_by_one))
    a = after.clone().requires_grad_()
    trace_of_root(a, start).backward()
    assert start.grad is None and a.grad is not None


def test_who_takes_a_start() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for dtype, limit in ((torch.float32, 128), (torch.float64, 64)):
        assert backends.takes_start("native", gpu, limit, dtype)
        assert not backends.takes_start("native", gpu, limit + 1, dtype)
        layers = [
            ChannelWhitening(size, batch_weight=0.5, dtype=dtype) for size in (limit, limit + 1)
        ]
        assert [layer.last_basis is None for layer in layers] == [False, True]
    assert not backends.takes_start("native", cpu, 4, torch.float32)
    assert not backends.takes_start("triton", gpu, 4, torch.float32)
    assert not backends.takes_start("reference", gpu, 4, torch.float32)


# The layer.


@pytest.mark.usefixtures("gains")
@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_layer_remembers_its_eigenvectors(kind: str) -> None:
    layer = make(kind=kind)
    assert torch.equal(layer.last_basis, torch.eye(D).expand(G, D, D))
    x = batches(1)[0]
    blended = 0.1 * fastwhiten.batch_statistics(x, groups=G)[1] + 0.9 * layer.running_cov
    layer(x)
    diagonal = layer.last_basis.mT @ blended @ layer.last_basis
    off = diagonal - torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-6 < (layer.last_basis - torch.eye(D)).abs().max()


@pytest.mark.emulated
@pytest.mark.usefixtures("emulated")
def test_the_next_step_takes_fewer_sweeps() -> None:
    layer, (first, second) = make(momentum=0.5), batches(2)
    layer(first)
    statistics = fastwhiten.batch_statistics(second, groups=G, backend="reference")[1]
    blended = 0.1 * statistics + 0.9 * layer.running_cov
    cold, warm = solve(blended)[2], solve(blended, start=layer.last_basis)[2]
    assert (warm < cold).all(), (cold.tolist(), warm.tolist())


@pytest.mark.emulated
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_outputs_and_gradients_do_not_change(dtype: torch.dtype) -> None:
    warm, cold, exact = make(), make(), make("reference", statistics_dtype=torch.float64)
    if dtype == torch.float64:
        warm, cold = warm.double(), cold.double()
    exact, cold.last_basis = exact.double(), None
    for x in batches(3, dtype):
        results = []
        for layer in (warm, cold, exact):
            given = (x.double() if layer is exact else x).clone().requires_grad_()
            y = layer(given)
            (y * torch.linspace(-1, 1, C)).pow(3).sum().backward()
            results.append((y.detach(), given.grad))
        for ours, plain, truth in zip(*results, strict=True):
            assert_close_to_fp64(ours, truth, plain, 3.0, "another path to the same eigenvectors")


@pytest.mark.usefixtures("gains")
def test_a_batch_that_is_not_finite_leaves_it() -> None:
    layer, (first, second) = make(), batches(2)
    layer(first)
    before = layer.last_basis.clone()
    second[0, 0] = float("nan")  # in the first group
    layer(second)
    assert torch.equal(layer.last_basis[0], before[0])
    assert layer.last_basis.isfinite().all() and not torch.equal(layer.last_basis[1], before[1])


@pytest.mark.parametrize("options", [{"batch_weight": 1.0}, {"kind": "cholesky"}, {"groups": 1}])
def test_a_layer_that_cannot_gain_keeps_nothing(options: dict) -> None:
    assert ChannelWhitening(200, **{"batch_weight": 0.5, "groups": 2, **options}).last_basis is None


@pytest.mark.usefixtures("gains")
def test_it_is_no_state() -> None:
    layer = make()
    layer(batches(1)[0])
    state = layer.state_dict()
    assert "last_basis" not in state
    identity = torch.eye(D).expand(G, D, D)
    address = layer.last_basis.data_ptr()
    layer.load_state_dict(state)
    assert torch.equal(layer.last_basis, identity) and layer.last_basis.data_ptr() == address
    layer(batches(1)[0])
    layer.reset_running_stats()
    assert torch.equal(layer.last_basis, identity)
    layer(batches(1)[0])
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.last_basis, layer.last_basis)
    assert twin.last_basis.data_ptr() != layer.last_basis.data_ptr()


@pytest.mark.usefixtures("gains")
def test_it_moves_and_converts_with_the_module() -> None:
    layer = make()
    layer(batches(1)[0])
    before = layer.last_basis.clone()
    assert torch.equal(layer.to("cpu").last_basis, before)
    identity = torch.eye(D).expand(G, D, D)
    for convert, dtype in ((layer.double, torch.float64), (layer.bfloat16, torch.float32)):
        convert()
        assert layer.last_basis.dtype == dtype and torch.equal(layer.last_basis, identity.to(dtype))
    state = make().state_dict()
    with torch.device("meta"):
        empty = make()
    assert empty.last_basis.is_meta
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty.last_basis, identity)


@pytest.mark.usefixtures("gains")
def test_input_of_another_dtype_neither_reads_nor_writes_it() -> None:
    layer = make()
    y = layer(batches(1)[0].double())
    assert y.dtype == torch.float64 and torch.equal(layer.last_basis, torch.eye(D).expand(G, D, D))


@pytest.mark.usefixtures("gains")
def test_compile_export_functional_call_and_vmap() -> None:
    layer, (first, second) = make(), batches(2)
    layer(first)
    compiled, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    expected = plain(second)
    y = torch.compile(compiled, fullgraph=True, backend="aot_eager")(second)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(compiled.last_basis, plain.last_basis)
    exported = torch.export.export(copy.deepcopy(layer), (second,)).module()
    torch.testing.assert_close(exported(second), expected)
    given = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    given = {name: t.clone() for name, t in given.items()}
    kept = layer.last_basis.clone()
    y = torch.func.functional_call(layer, given, (second,))
    torch.testing.assert_close(y, expected)
    assert torch.equal(layer.last_basis, kept)
    torch.testing.assert_close(given["last_basis"], plain.last_basis)
    buffers = {name: torch.stack([t, t]) for name, t in layer.named_buffers()}
    ys = torch.vmap(lambda b, x: torch.func.functional_call(layer, b, (x,)), randomness="error")(
        buffers, torch.stack([first, second])
    )
    torch.testing.assert_close(ys[1], expected)
    torch.testing.assert_close(buffers["last_basis"][1], plain.last_basis)


def test_remember_is_decided_group_by_group() -> None:
    basis, new = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    new[1, 0, 1] = float("inf")
    warm_start.remember(basis, new)
    assert basis[:, 0, 0].tolist() == [1.0, 0.0, 1.0] and basis.isfinite().all()
