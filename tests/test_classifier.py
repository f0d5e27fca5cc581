"""Whitening in front of classifiers, in stand-ins with the conventions of well-known packages."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastwhiten
from tests.helpers import plain, spectra

D, K = 6, 3


class Torchvision(nn.Module):
    """``fc``, or another attribute; models of a ``Sequential`` end in the linear layer."""

    def __init__(self, name: str = "fc", part: nn.Module | None = None) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(D, K) if part is None else part)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


class Subclass(nn.Linear):
    """As timm's own Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Timm(nn.Module):
    """The head has layers of its own; ``get_classifier`` says which one is it."""

    def __init__(self, fc: nn.Module) -> None:
        super().__init__()
        self.num_features = D
        self.head = nn.Module()
        self.head.fc, self.head.norm = fc, nn.Linear(1, 1)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.get_classifier()(x)


class HuggingFaceHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout, self.out_proj = nn.Identity(), nn.Dropout(0.0), nn.Linear(D, K)
        self.other = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(self.dense(x)))


def sequential() -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.Linear(D, K))


def vit_heads() -> nn.Module:
    heads = nn.Sequential()
    heads.head = nn.Linear(D, K)
    return heads


ROWS, TOKENS, MAP = (40, D), (8, 5, D), (10, D, 2, 2)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "torchvision fc": (Torchvision, ROWS, "fc"),
    "torchvision head": (lambda: Torchvision("head"), ROWS, "head"),
    "torchvision classifier": (
        lambda: Torchvision("classifier", sequential()),
        ROWS,
        "classifier.2",
    ),
    "torchvision heads": (lambda: Torchvision("heads", vit_heads()), ROWS, "heads.head"),
    "timm": (lambda: Timm(Subclass(D, K)), ROWS, "head.fc"),
    "timm, convolution": (lambda: Timm(nn.Conv2d(D, K, 1)), MAP, "head.fc"),
    "hugging face": (
        lambda: Torchvision("classifier", HuggingFaceHead()),
        ROWS,
        "classifier.out_proj",
    ),
    "hugging face, tokens": (
        lambda: Torchvision("score", nn.Linear(D, K, bias=False)),
        TOKENS,
        "score",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_whitened_and_undone(name: str) -> None:
    make, shape, path = MODELS[name]
    model = make().double()
    dim = 1 if shape == MAP else -1
    rows = spectra.random(40, D)
    x = plain.from_rows(rows, torch.empty(shape)) if dim == 1 else rows.reshape(shape)
    linear, before = model.get_submodule(path), model(x)
    kind, unwhitened = type(linear), copy.deepcopy(linear)
    keys, parameter = list(model.state_dict()), linear.weight

    change = fastwhiten.whiten_classifier_input(model, momentum=None, eps=1e-2)
    assert change.path == path and f"{path}: ChannelWhitening(6" in repr(change)
    assert change.layer.running_cov.dtype == torch.float64
    assert model.get_submodule(path) is linear and linear.weight is parameter
    assert isinstance(linear, kind) and type(linear).__name__ == f"Whitened{kind.__name__}"
    added = {
        f"{path}.whitening.{n}" for n in ("running_mean", "running_cov", "num_batches_tracked")
    }
    assert set(model.state_dict()) == {*keys, *added}

    white = plain.whiten(x.movedim(dim, 1), eps=1e-2).movedim(1, dim)
    expected = unwhitened(white)
    # White rows times weights below one, in float64.
    torch.testing.assert_close(model(x), expected, rtol=0.0, atol=1e-11)
    # One batch is the average of its statistics.
    evaluated = model.eval()(x)
    torch.testing.assert_close(evaluated, expected, rtol=0.0, atol=1e-10)

    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), evaluated)
        other.get_submodule(path).whitening.running_cov.mul_(2)
        assert not torch.equal(other(x), evaluated) and torch.equal(model(x), evaluated)

    with pytest.raises(ValueError, match="whose input is whitened already"):
        fastwhiten.whiten_classifier_input(model)
    change.undo()
    change.undo()
    assert list(model.state_dict()) == keys and torch.equal(model(x), before)
    assert type(linear) is kind and "undone" in repr(change)


def test_half_precision_models_whiten_in_float32_where_they_are() -> None:
    model = Torchvision().to("meta", torch.bfloat16).eval()
    layer = fastwhiten.whiten_classifier_input(model).layer
    assert layer.running_cov.is_meta and layer.running_cov.dtype == torch.float32
    assert not layer.training


def test_nothing_found_or_too_much_lists_what_there_is() -> None:
    for model, text in (
        (nn.Sequential(nn.Linear(D, D), nn.Linear(D, K)), r"got \[\]; .* linear layers: 0, 1$"),
        (Timm(nn.Identity()), r"in get_classifier\(\), got \[\]; .* linear layers: head.norm$"),
    ):
        with pytest.raises(ValueError, match=text):
            fastwhiten.whiten_classifier_input(model)
    two = Torchvision()
    two.head = nn.Linear(D, K)
    with pytest.raises(ValueError, match=r"got \['fc', 'head'\]; pass classifier="):
        fastwhiten.whiten_classifier_input(two)
    assert fastwhiten.whiten_classifier_input(two, classifier="head").path == "head"
    for path, got in (("body", "no such module"), ("fc.whitening", "no such"), ("", "Torchvision")):
        with pytest.raises(ValueError, match=f"classifier='{path}' to be the path .* got {got}"):
            fastwhiten.whiten_classifier_input(two, classifier=path)


def test_undo_refuses_where_somebody_has_changed_the_place() -> None:
    model = Torchvision()
    change = fastwhiten.whiten_classifier_input(model)
    model.fc.whitening = nn.Identity()
    with pytest.raises(RuntimeError, match="where it was put, got Identity; undo later changes"):
        change.undo()
    assert type(model.fc) is not nn.Linear
    model.fc = nn.Linear(D, K)
    model.fc.forward = lambda x: x
    with pytest.raises(ValueError, match="expected 'fc' to have its class's forward"):
        fastwhiten.whiten_classifier_input(model)


@pytest.mark.slow
def test_compiled_code_notices() -> None:
    torch._dynamo.reset()
    model, x = Torchvision(), torch.randn(40, D)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    change = fastwhiten.whiten_classifier_input(model)
    torch.testing.assert_close(compiled(x), model(x), rtol=0.0, atol=1e-5)
    assert not torch.allclose(compiled(x), before, atol=1e-2)
    change.undo()
    assert torch.equal(compiled(x), before)
