"""TF32 and bfloat16 products are left to the network around whitening."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

import fastwhiten
from fastwhiten import ChannelWhitening, evaluation, precision
from fastwhiten.backends import operators, reference
from tests.helpers.reference_error import relative_error

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "linalg_eigh", "_linalg_eigh", "linalg_cholesky_ex"}
PLACES = (("cuda", "matmul"), ("mkldnn", "matmul"), ("cuda", "all"), ("generic", "all"))


def settings() -> tuple[Any, ...]:
    """Everything that PyTorch says about the precision of products, of both interfaces."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "contradiction"
    return (older, *(torch._C._get_fp32_precision_getter(*place) for place in PLACES))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    for place in PLACES:
        torch._C._set_fp32_precision_setter(*place, "none")
    torch.set_float32_matmul_precision("highest")


class Products(TorchDispatchMode):
    """The setting under which every product ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in PRODUCTS:
            self.seen.append((name, torch._C._get_fp32_precision_getter("mkldnn", "matmul")))
        return func(*args, **(kwargs or {}))


def _train(x: torch.Tensor, **options: Any) -> None:
    layer = ChannelWhitening(x.shape[1], backend="reference", **options)
    layer(x.requires_grad_()).square().sum().backward()


def _twice(x: torch.Tensor, backend: str) -> None:
    x.requires_grad_()
    y = fastwhiten.whiten(x, backend=backend).pow(3).sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    torch.autograd.grad(grad.square().sum(), x)


def _matrix(kind: str) -> None:
    s = torch.eye(5).requires_grad_()
    fastwhiten.whitening_matrix(s, kind=kind, backend="reference").square().sum().backward()


def _statistics() -> None:
    x = torch.randn(9, 4, requires_grad=True)
    fastwhiten.batch_statistics(x, backend="reference")[1].square().sum().backward()


STAGES: dict[str, Callable[[], None]] = {
    "feature side": lambda: _train(torch.randn(20, 6)),
    "half precision": lambda: _train(torch.randn(20, 6).bfloat16()),
    "cholesky": lambda: _train(torch.randn(20, 6), kind="cholesky"),
    "sample side, covariance": lambda: _train(torch.randn(4, 9)),
    "sample side, matrix": lambda: _train(torch.randn(4, 9), running="matrix"),
    "second derivative": lambda: _twice(torch.randn(20, 6), "native"),
    "second derivative, sample side": lambda: _twice(torch.randn(4, 9), "native"),
    "whitening matrix": lambda: _matrix("zca"),
    "whitening matrix, pca": lambda: _matrix("pca"),
    "statistics": _statistics,
    "matrix of an evaluation": lambda: evaluation.compute(
        torch.eye(6).unsqueeze(0), 0, 1e-3, None, False, "reference"
    ),
}


@pytest.mark.parametrize("setting", ["high", "medium"])
@pytest.mark.parametrize("name", STAGES)
def test_every_product_is_float32s(name: str, setting: str) -> None:
    torch.set_float32_matmul_precision(setting)
    before = settings()
    with Products() as products:
        STAGES[name]()
    assert products.seen and {value for _, value in products.seen} == {"ieee"}, products.seen
    assert settings() == before


def test_an_evaluation_multiplies_as_the_user_says() -> None:
    layer = ChannelWhitening(6).eval()
    torch.set_float32_matmul_precision("high")
    with Products() as products:
        layer(torch.randn(20, 6))
    assert [value for _, value in products.seen] == ["tf32"]


def _newer() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def _allow() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._C._set_fp32_precision_setter("mkldnn", "matmul", "tf32")


WAYS: dict[str, Callable[[], None]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer": _newer,
    "allow_tf32": _allow,
    "for everything": lambda: torch._C._set_fp32_precision_setter("generic", "all", "tf32"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_set_is_restored(way: str) -> None:
    """Of both interfaces, which contradict each other nowhere in between; after errors, too."""
    WAYS[way]()
    before = settings()
    x = torch.randn(8, 3)
    with pytest.raises(ZeroDivisionError), precision.own_precision(x):
        with precision.own_precision(x):
            assert settings()[:3] == ("highest", "ieee", "ieee")
            assert torch.backends.cuda.matmul.allow_tf32 is False
        assert settings()[:3] == ("highest", "ieee", "ieee")
        raise ZeroDivisionError
    assert settings() == before


def test_a_setting_for_everything_is_followed_afterwards() -> None:
    torch._C._set_fp32_precision_setter("generic", "all", "tf32")
    fastwhiten.whiten(torch.randn(20, 6))
    torch._C._set_fp32_precision_setter("generic", "all", "ieee")
    assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "ieee"


def test_nothing_is_set_where_nothing_has_to_be() -> None:
    x = torch.randn(8, 3)
    assert not precision.FULL_FLOAT32.needed(x)
    torch.set_float32_matmul_precision("high")
    assert precision.FULL_FLOAT32.needed(x) and precision.FULL_FLOAT32.needed(x.half())
    assert not precision.FULL_FLOAT32.needed(x.double())
    assert not precision.FULL_FLOAT32.needed(x.to("meta"))


def test_the_last_of_two_threads_restores() -> None:
    torch.set_float32_matmul_precision("high")
    x, inside, leave = torch.randn(8, 3), threading.Event(), threading.Event()
    found: list[str] = []

    def other() -> None:
        with precision.own_precision(x):
            inside.set()
            leave.wait()
            found.append(torch.get_float32_matmul_precision())

    thread = threading.Thread(target=other, daemon=True)
    with precision.own_precision(x):
        thread.start()
        while not inside.wait(0.1):
            assert thread.is_alive()
    assert torch.get_float32_matmul_precision() == "highest"  # the other one is inside
    leave.set()
    thread.join()
    assert found == ["highest"] and torch.get_float32_matmul_precision() == "high"


def test_operators_set_it_themselves() -> None:
    """A compiled graph calls them without the context around the layer."""
    seen: list[str] = []

    def eigh(
        a: torch.Tensor, start: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.get_float32_matmul_precision())
        return reference.eigh(a, start)

    op = operators.operator("test", "eigh", eigh)
    torch.set_float32_matmul_precision("high")
    op(torch.eye(3).unsqueeze(0))
    assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"


COMPILED: dict[str, tuple[tuple[int, int], str]] = {
    "feature side": ((20, 6), "reference"),
    "sample side": ((4, 9), "reference"),
    "native": ((20, 6), "native"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_graph_holds_no_product(name: str) -> None:
    """They are inside operators: what runs later has the user's setting, and is compiled again."""
    shape, backend = COMPILED[name]
    graphs: list[set[str]] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    def train(layer: ChannelWhitening, call: Callable[..., Any], x: torch.Tensor) -> Any:
        x = x.clone().requires_grad_()
        y = call(x)
        y.pow(3).sum().backward()
        return y.detach(), x.grad, layer.running_matrix

    torch._dynamo.reset()
    layers = [ChannelWhitening(shape[1], backend=backend, running="matrix") for _ in range(2)]
    compiled = torch.compile(layers[0], fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    x = torch.randn(shape)
    compiled(x)
    torch.set_float32_matmul_precision("high")
    graphs.clear()
    layers[0].reset_running_stats()
    ours = train(layers[0], compiled, x)
    assert len(graphs) == 2  # forward and backward, compiled anew
    targets = set.union(*graphs)
    assert not {t for t in targets if t.split(".")[1:2] and t.split(".")[1] in PRODUCTS}, targets
    for value, expected in zip(ours, train(layers[1], layers[1], x), strict=True):
        assert (
            relative_error(value, expected.double()) < 1e-5
        )  # other roundings; TF32's would be 1e-3
