"""Whatever happened to a layer, it evaluates as one newly loaded from its state_dict.

Random histories of a ``ChannelWhitening``, beside an ``nn.BatchNorm1d`` with the same history.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from fastwhiten import ChannelWhitening
from tests.helpers.evaluations import EPS, C, batch, compare, expected

OPTIONS: dict[str, dict[str, Any]] = {
    "zca": {},
    "zca, groups, affine": {"groups": 2, "affine": True},
    "zca, blended": {"batch_weight": 0.3, "groups": 2},
    "zca, running matrix": {"running": "matrix", "affine": True},
    "pca, affine": {"kind": "pca", "affine": True},
    "cholesky, shrunk": {"kind": "cholesky", "groups": 2, "shrinkage": 0.3},
    "cholesky, running matrix": {"kind": "cholesky", "running": "matrix"},
    "zca, double inside": {"statistics_dtype": torch.float64, "batch_weight": 0.5},
}

Pair = tuple[ChannelWhitening, nn.BatchNorm1d]


def make(options: dict[str, Any], **factory: Any) -> Pair:
    affine = options.get("affine", False)
    return (
        ChannelWhitening(C, eps=EPS, **options, **factory),
        nn.BatchNorm1d(C, eps=EPS, affine=affine, **factory),
    )


def check(layer: ChannelWhitening, options: dict[str, Any]) -> None:
    new = ChannelWhitening(C, **options)
    shapes = [(name, t.shape) for name, t in layer.named_buffers()]
    assert shapes == [(name, t.shape) for name, t in new.named_buffers()]
    assert list(layer.state_dict()) == list(new.state_dict())
    floating = {t.dtype for t in layer.state_dict().values() if t.is_floating_point()}
    assert len(floating) == 1
    if layer.last_basis is not None:
        at_least = torch.promote_types(layer.running_mean.dtype, torch.float32)
        assert layer.last_basis.dtype == at_least
    x = batch(99, layer)
    evaluated = layer if not layer.training else copy.deepcopy(layer).eval()
    with torch.no_grad():  # parameters that were made in inference mode can have no gradient
        compare(layer, evaluated(x), expected(layer, layer.state_dict(), x))


# What can happen. Each takes a module, and returns it or what takes its place.

Step = Callable[[nn.Module, int], nn.Module]


def other_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """The state of a module of the same kind that has seen other batches."""
    with torch.inference_mode(False):
        other = copy.deepcopy(module)
        other.load_state_dict(
            {k: v.detach().clone() for k, v in module.state_dict().items()}, assign=True
        )
        other.train().requires_grad_(False)
        with torch.no_grad():
            for i in range(2):
                other(batch(seed + i, other))
        return {name: t.clone() for name, t in other.state_dict().items()}


def forward(module: nn.Module, seed: int) -> nn.Module:
    module(batch(seed, module))
    return module


def backward(module: nn.Module, seed: int) -> nn.Module:
    module(batch(seed, module).requires_grad_()).square().sum().backward()
    return module


def in_place(module: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad():
        for name, t in module.named_buffers():
            if name in ("running_cov", "running_matrix", "running_var"):
                t.mul_(1.0 + seed % 3)
    return module


def through_data(module: nn.Module, seed: int) -> nn.Module:
    for t in module.buffers():
        if t.dtype != torch.long:
            t.data.mul_(0.5)
    return module


def through_numpy(module: nn.Module, seed: int) -> nn.Module:
    for name, t in module.named_buffers():
        if name != "num_batches_tracked":
            t.numpy()[...] *= 1.25
    return module


def replaced(module: nn.Module, seed: int) -> nn.Module:
    for name, t in list(module.named_buffers()):
        if name != "num_batches_tracked":
            setattr(module, name, t * 1.5)
    return module


def load(module: nn.Module, seed: int) -> nn.Module:
    module.load_state_dict(other_state(module, seed))
    return module


def assign(module: nn.Module, seed: int) -> nn.Module:
    module.load_state_dict(other_state(module, seed), assign=True)
    return module


def pickled(module: nn.Module, seed: int) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def saved(module: nn.Module, seed: int) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def functional(module: nn.Module, seed: int) -> nn.Module:
    x = batch(seed, module)
    for i in range(3):
        state = other_state(module, seed + 10 * i)
        before = {name: t.clone() for name, t in state.items()}
        y = functional_call(module, state, (x,))
        if isinstance(module, ChannelWhitening) and not module.training:
            compare(module, y, expected(module, before, x))
    return module


def vmapped(module: nn.Module, seed: int) -> nn.Module:
    x = batch(seed, module)
    states = [other_state(module, seed + 10 * i) for i in range(2)]
    stacked = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    if isinstance(module, ChannelWhitening) and module.last_basis is not None:
        stacked["last_basis"] = torch.stack([module.last_basis] * 2)
    y = torch.vmap(lambda s: functional_call(module, s, (x,)))(stacked)
    if isinstance(module, ChannelWhitening) and not module.training:
        for state, part in zip(states, y, strict=True):
            compare(module, part, expected(module, state, x))
    return module


def inputs_vmapped(module: nn.Module, seed: int) -> nn.Module:
    if not module.training:  # in training neither can update its statistics
        torch.vmap(module)(torch.stack([batch(seed, module), batch(seed + 1, module)]))
    return module


def inference(step: Step) -> Step:
    def inside(module: nn.Module, seed: int) -> nn.Module:
        with torch.inference_mode():
            return step(module, seed)

    return inside


def through_meta(module: nn.Module, seed: int) -> nn.Module:
    state = other_state(module, seed)
    module = module.to("meta")
    module(batch(seed, module).to("meta"))
    module = module.to_empty(device="cpu")
    module.load_state_dict(state)
    return module


def averaged(module: nn.Module, seed: int) -> nn.Module:
    """The average's layer, which has been in either mode while the other was updated."""
    average = AveragedModel(module, use_buffers=seed % 2 == 0)
    average.train(seed % 3 == 0)
    average(batch(seed, module))
    module.train(seed % 5 < 3)
    module(batch(seed + 1, module))
    average.update_parameters(module)
    average.update_parameters(module)
    average.eval()(batch(seed, module))
    return average.module.train(module.training)


STEPS: dict[str, Step] = {
    "train": lambda m, _: m.train(),
    "eval": lambda m, _: m.eval(),
    "reset": lambda m, _: (m.reset_running_stats(), m)[1],
    "double": lambda m, _: m.double(),
    "float": lambda m, _: m.float(),
    "half": lambda m, _: m.half(),
    "deepcopy": lambda m, _: copy.deepcopy(m),
    "deepcopy in inference mode": inference(lambda m, _: copy.deepcopy(m)),
    "double in inference mode": inference(lambda m, _: m.double()),
    "forward in inference mode": inference(forward),
    "load in inference mode": inference(load),
    "assign in inference mode": inference(assign),
}
OTHERS = [forward, backward, in_place, through_data, through_numpy, replaced, load, assign]
OTHERS += [pickled, saved, functional, vmapped, inputs_vmapped, through_meta, averaged]
STEPS.update((step.__name__, step) for step in OTHERS)
WEIGHTS = {"forward": 3, "eval": 4, "train": 2}
# Where BatchNorm may raise and the layer may not.
STRICTER = ("nference", "mixed dtype", "not implemented for 'Half'")


def step_both(pair: Pair, name: str, seed: int) -> Pair:
    """Do the same to both; the layer raises only where BatchNorm does."""
    results: list[Any] = []
    errors: list[Exception | None] = []
    for module in reversed(pair):
        error, result = None, module
        try:
            result = STEPS[name](module, seed)
        except RuntimeError as e:
            error = e
        results.append(result)
        errors.append(error)
    if errors[1] is not None and errors[0] is None:
        raise AssertionError(f"{name}: BatchNorm works, the layer does not") from errors[1]
    if errors[0] is not None and errors[1] is None:
        assert any(text in str(errors[0]) for text in STRICTER), errors[0]
    return results[1], results[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_random_histories(name: str) -> None:
    options = OPTIONS[name]
    draw = random.Random(name)
    for _ in range(12):  # histories
        building = torch.inference_mode() if draw.random() < 0.2 else contextlib.nullcontext()
        with building:
            pair = make(options, dtype=draw.choice([torch.float32, torch.float64]))
        history = []
        for _ in range(12):
            weights = [WEIGHTS.get(step, 1) for step in STEPS]
            history.append(draw.choices(list(STEPS), weights)[0])
            try:
                pair = step_both(pair, history[-1], draw.randrange(1000))
                check(pair[0], options)
            except Exception as e:
                raise AssertionError(f"after {history}") from e
