"""The raw Triton operators: opcheck, dtypes and strides, and what they refuse."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import operators, reference, stages, triton
from tests.test_opcheck import UTILS, WRONG, calls

pytestmark = pytest.mark.interpret


def one_of_each() -> list[Any]:
    """The first and the last call of every operator and dtype: options off, and on."""
    found: dict[str, list[Any]] = {}
    for param in calls():
        found.setdefault(str(param.id), []).append(param)
    return [p for params in found.values() for p in ([params[0], params[-1]][: len(params)])]


@pytest.mark.parametrize(("op", "arguments"), one_of_each())
def test_results_have_the_shapes_and_dtypes_of_the_reference(
    op: str, arguments: tuple[Any, ...]
) -> None:
    ours, expected = getattr(triton, op)(*arguments), getattr(reference, op)(*arguments)
    ours = (ours,) if isinstance(ours, Tensor) else ours
    expected = (expected,) if isinstance(expected, Tensor) else expected
    for value, ref in zip(ours, expected, strict=True):
        assert value.shape == ref.shape and value.dtype == ref.dtype
        assert value.is_contiguous()


def slow_once() -> list[Any]:
    """Tracing takes seconds an operator: one float32 call of each, all options on."""
    last = {p.values[0]: p for p in calls() if str(p.id).endswith("float32")}
    return list(last.values())


@pytest.mark.parametrize(("op", "arguments"), slow_once())
def test_opcheck(op: str, arguments: tuple[Any, ...]) -> None:
    overload = getattr(torch.ops.fastwhiten, f"triton_{op}").default
    result = torch.library.opcheck(overload, arguments, test_utils=UTILS)
    assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize("name", WRONG)
def test_raw_operators_check_their_arguments(name: str) -> None:
    """Whoever calls them directly gets an exception, not memory that is not theirs."""
    op, arguments = WRONG[name]
    with pytest.raises(ValueError, match=op):
        getattr(triton, op)(*arguments)


def test_every_operator_runs_on_its_inputs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device: the first tensor's has to be that, all the time."""
    entered: list[torch.device] = []
    inside: list[torch.device] = []

    @contextlib.contextmanager
    def record(device: torch.device) -> Any:
        entered.append(device)
        inside.append(device)
        yield
        inside.pop()

    kernels = triton._kernels()

    def launcher(name: str) -> Any:
        def launch(*arguments: Any) -> Any:
            assert inside, f"{name} was called outside of the guard"
            return getattr(kernels, name)(*arguments)

        return launch

    launchers = {name: launcher(name) for name in vars(kernels) if name != "whole"}
    monkeypatch.setattr(operators, "current_device", record)
    monkeypatch.setattr(
        triton, "_kernels", lambda: SimpleNamespace(whole=kernels.whole, **launchers)
    )
    for param in slow_once():
        op, arguments = param.values
        entered.clear()
        getattr(torch.ops.fastwhiten, f"triton_{op}")(*arguments)
        assert entered == [arguments[0].device], op
    assert {param.values[0] for param in slow_once()} == set(stages.STAGES)


def test_the_device_of_a_gpu_tensor_becomes_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.cuda.device`` itself is replaced: what it does needs two GPUs, see tests/gpu."""
    made: list[torch.device] = []

    def device(index: torch.device) -> Any:
        made.append(index)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    with operators.current_device(torch.device("cuda", 1)):
        assert made == [torch.device("cuda", 1)]
    with operators.current_device(torch.device("cpu")):
        assert made == [torch.device("cuda", 1)]


def test_sample_side_is_the_references_where_offsets_would_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = pytest.importorskip("fastwhiten.kernels.sample")
    assert sample.serves(64, 2**25 - 1) and not sample.serves(64, 2**25)
    assert sample.serves(1, 2**31 - 1) and not sample.serves(65, 1)

    # Every stage asks, with the whole X: what does not fit here is six rows of eight channels.
    monkeypatch.setattr(triton._kernels(), "sample_serves", lambda m, c: (m, c) != (6, 8))
    for name in ("sample_statistics", "sample_apply", "sample_backward"):
        monkeypatch.setattr(triton._kernels(), name, lambda *_: pytest.fail("it was launched"))
    x = torch.randn(6, 8)
    _, scaled, gram = triton.sample_statistics(x, None, 2, False)
    assert torch.equal(gram, reference.sample_statistics(x, None, 2, False)[2])
    arguments = (*reference.eigh(gram), None, None, 1e-3)
    y, projected = triton.sample_apply(scaled, *arguments, x.dtype)
    assert torch.equal(y, reference.sample_apply(scaled, *arguments, x.dtype)[0])
    dx = triton.sample_backward(x, projected, *arguments)
    assert torch.equal(dx, reference.sample_backward(x, projected, *arguments))
