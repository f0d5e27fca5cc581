"""torch.compile without graph breaks, and export of evaluation as plain matrix products."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastwhiten
from fastwhiten import ChannelWhitening, evaluation
from tests.helpers import spectra

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()


def close(value: Tensor, expected: Tensor) -> None:
    """Float64: the same stages in another surrounding, so only a few roundings apart."""
    torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-11)


def both(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf)
    (y * torch.linspace(-1, 1, y.numel()).to(y).reshape(y.shape)).sum().backward()
    return y.detach(), leaf.grad


CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "zca": ((20, 6), {}),
    "pca": ((20, 6), {"kind": "pca", "groups": 2}),
    "cholesky": ((20, 6), {"kind": "cholesky", "shrinkage": "oas"}),
    "sample side": ((4, 9), {"shrinkage": "ledoit-wolf"}),
    "map": ((2, 4, 3, 3), {"groups": 2}),
    "weights": ((8, 3), {"sample_weight": torch.linspace(0.5, 2.0, 8).double()}),
    "weights, sample side": ((4, 9), {"sample_weight": torch.linspace(0.5, 2.0, 4).double()}),
}


# Sizes stay symbols for one case of each side and layout; for the others that adds only time.
RUNS = [(name, False) for name in CASES] + [(n, True) for n in ("zca", "sample side", "map")]


@pytest.mark.parametrize(("name", "dynamic"), RUNS)
def test_whiten(name: str, dynamic: bool, backend: str) -> None:
    shape, options = CASES[name]
    x = torch.randn(shape, dtype=torch.float64)

    def function(t: Tensor) -> Tensor:
        return 2.0 * fastwhiten.whiten(t.sin(), eps=0.1, backend=backend, **options)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for ours, expected in zip(both(compiled, x), both(function, x), strict=True):
        close(ours, expected)


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_layer_updates_its_statistics_in_the_graph(running: str, backend: str) -> None:
    eager, traced = (
        ChannelWhitening(6, affine=True, running=running, backend=backend).double()
        for _ in range(2)
    )
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = spectra.random(20, 6, seed)
        for ours, expected in zip(both(compiled, x), both(eager, x), strict=True):
            close(ours, expected)
    for key, value in eager.state_dict().items():
        close(traced.state_dict()[key].double(), value.double())
    assert traced.num_batches_tracked == 3
    traced.eval(), eager.eval()
    close(compiled(x), eager(x))


@pytest.mark.parametrize("rows", [(20, 33, 50), (3, 4, 5)], ids=["feature side", "sample side"])
def test_dynamic_batch_sizes_share_one_graph(rows: tuple[int, ...], backend: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    layer = ChannelWhitening(7, batch_weight=1.0, backend=backend).double()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for n in rows:
        x = spectra.random(n, 7)
        close(compiled(x), fastwhiten.whiten(x, backend=backend))
    # Dynamo also counts an empty graph in front.
    assert len([g for g in counter.graphs if len(g.graph.nodes)]) == 1


@pytest.mark.full
def test_inductor(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated code around the stages, forward and backward, once.

    In a cache of its own: code that another instruction set left there gives wrong gradients.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(
        nn.Linear(5, 6), ChannelWhitening(6, affine=True, backend=backend), nn.Linear(6, 2)
    ).double()
    x = spectra.random(20, 5)
    expected = both(model, x)
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    ours = both(torch.compile(model, fullgraph=True, dynamic=True, backend="inductor"), x)
    close(ours[0], expected[0])
    close(ours[1], expected[1])
    close(model[0].weight.grad, gradient)


def test_compiled_autocast(backend: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), ChannelWhitening(6, backend=backend))

    def function(t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(t)

    x = torch.randn(20, 5)
    expected = function(x)
    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_evaluation_follows_the_statistics_and_computes_their_matrix_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    compute = evaluation.compute
    monkeypatch.setattr(evaluation, "compute", lambda *a: calls.append(1) or compute(*a))
    layer = ChannelWhitening(6, groups=2, affine=True).double()
    x = spectra.random(20, 6)
    layer(x)
    layer.eval()
    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    with torch.no_grad():
        for count in (1, 2, 3):
            for _ in range(3):
                close(compiled(x), layer(x))
            assert len(calls) == count
            layer.running_cov.data.mul_(1.5)
            if count == 2:
                layer.running_cov = layer.running_cov + 0.1


def ops_in(program: torch.export.ExportedProgram) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("kind", "running"),
    [("zca", "covariance"), ("zca", "matrix"), ("pca", "covariance"), ("cholesky", "covariance")],
)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4, 3)], ids=["rows", "map"])
def test_export_of_evaluation_is_a_plain_matmul(
    shape: tuple[int, ...], running: str, kind: str, strict: bool, backend: str
) -> None:
    layer = ChannelWhitening(6, groups=2, kind=kind, running=running, affine=True, backend=backend)
    layer(spectra.random(30, 6).float())
    layer.eval()
    x = torch.randn(shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    ops = ops_in(program)
    assert any("matmul" in op or "mm" in op for op in ops)
    for name in ("fastwhiten", "eigh", "cholesky", "solve_triangular"):
        assert not any(name in op for op in ops), ops
    assert torch.equal(program.module()(x), layer(x))
    other = torch.randn(11, *shape[1:])
    torch.testing.assert_close(program.module()(other), layer(other))


def test_export_of_one_group_is_one_matmul(backend: str) -> None:
    layer = ChannelWhitening(6, backend=backend).eval()
    ops = ops_in(torch.export.export(layer, (torch.randn(5, 6),)))
    assert sum("matmul" in op or "mm" in op for op in ops) == 1
    # Subtract the mean, multiply; the rest selects the matrix and converts dtypes.
    assert len([op for op in ops if "sub" in op]) == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("change", ["data", "copy", "assign", "attribute", "convert", "reset"])
def test_export_takes_the_statistics_as_they_are(change: str, strict: bool) -> None:
    layer, x = ChannelWhitening(6), spectra.random(20, 6).float()
    layer(x)
    layer.eval()(x)
    if change == "data":
        layer.running_cov.data.mul_(2)
    elif change == "copy":
        layer = copy.deepcopy(layer)
    elif change == "assign":
        state = {name: 2 * t for name, t in layer.state_dict().items()}
        layer.load_state_dict(state, assign=True)
    elif change == "attribute":
        layer.running_cov = 3 * layer.running_cov
    elif change == "convert":
        layer, x = layer.double(), x.double()
    else:
        layer.reset_running_stats()
    program = torch.export.export(layer, (x,), strict=strict)
    assert not any("population_matrix" in op for op in ops_in(program))
    assert torch.equal(program.module()(x), layer(x))


def test_a_trace_holds_the_matrix_as_a_constant() -> None:
    layer, x = ChannelWhitening(6), spectra.random(20, 6).float()
    layer(x)
    traced = torch.jit.trace(layer.eval(), (x,))
    assert "population_matrix" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), layer(x))


def test_export_of_training_traces_the_stages() -> None:
    """Functional graphs keep the compiled ops as single nodes."""
    program = torch.export.export(
        ChannelWhitening(6, backend="native").train(), (torch.randn(20, 6),)
    )
    ops = ops_in(program)
    assert any("fastwhiten.whiten_forward" in op for op in ops)
