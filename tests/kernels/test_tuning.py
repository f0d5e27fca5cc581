"""FASTWHITEN_AUTOTUNE: which configurations there are, which one is launched, and when."""

from typing import Any

import pytest
import torch

import fastwhiten
from tests.helpers import plain, spectra

pytestmark = pytest.mark.interpret
tuning = pytest.importorskip("fastwhiten.kernels.tuning")


@pytest.fixture(autouse=True)
def _forget() -> Any:
    tuning.forget()
    yield
    tuning.forget()


def passes(rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, grad = spectra.random(rows, channels).float(), spectra.random(rows, channels, 5).float()
    return plain.value_and_grad(fastwhiten.whiten, x, grad, backend="triton", eps=0.1)


def test_the_fixed_one_is_first_and_others_have_fewer_registers() -> None:
    fixed = {"num_warps": 4, "num_stages": 2, "BLOCK_ROWS": 32}
    others = [{**fixed, "num_warps": 8}, {**fixed, "BLOCK_ROWS": 16}]
    assert tuning.configurations(fixed) == [fixed, *others]
    assert tuning.configurations(fixed, spills=("warps",)) == [fixed, others[1]]
    largest = {"num_warps": 16, "num_stages": 1, "BLOCK_ROWS": 16}
    assert tuning.configurations(largest) == [largest]


def test_nothing_is_timed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTWHITEN_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning, "seconds", lambda run, device: pytest.fail("it was timed"))
    passes(20, 3)
    passes(3, 5)
    assert tuning._choices == {}


@pytest.mark.parametrize("fastest", [0, 1, 2])
@pytest.mark.parametrize(("rows", "channels"), [(40, 4), (4, 9)], ids=["features", "samples"])
def test_every_configuration_gives_the_same_result(
    rows: int, channels: int, fastest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate that the clock favours is the one that is launched, in every stage."""
    expected = passes(rows, channels)
    launched: list[dict[str, int]] = []

    def launch(stage, shape_class, device, options, run):
        clock = iter([0.5 if i == fastest else 1.0 for i in range(len(options))])
        monkeypatch.setattr(tuning, "seconds", lambda run, device: next(clock))
        return original(
            stage, shape_class, device, options, lambda o: (launched.append(o), run(o))[1]
        )

    original = tuning.launch
    monkeypatch.setattr(tuning, "launch", launch)
    monkeypatch.setenv("FASTWHITEN_AUTOTUNE", "1")
    ours = passes(rows, channels)
    stages = {key[0] for key in tuning._choices}
    if rows > channels:
        assert stages == {
            *("statistics", "factor", "apply"),
            *("backward_reduce", "backward_matrix", "backward_apply"),
        }
    else:
        assert stages == {"sample_statistics", "eigh", "sample_apply", "sample_backward"}
    assert fastest in tuning._choices.values() or (fastest == 2 and rows < channels)
    assert len(launched) == len(stages)  # nothing else was run: the clock is ours here
    for value, ref in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, ref, rtol=2e-5, atol=2e-5)


def test_a_choice_is_made_once_for_a_shape_class(monkeypatch: pytest.MonkeyPatch) -> None:
    timed, ran = [], []

    def seconds(run, device):
        timed.append(run)
        return 1.0 / len(timed)

    monkeypatch.setenv("FASTWHITEN_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "seconds", seconds)
    options = tuning.configurations({"num_warps": 2, "num_stages": 1})
    for size in (4, 4, 8):
        tuning.launch("stage", (size,), torch.device("cpu"), options, ran.append)
    assert len(timed) == 4 and ran == [options[1]] * 2 + [options[1]]


def test_a_small_gain_does_not_move_the_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 0.98])
    monkeypatch.setenv("FASTWHITEN_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "seconds", lambda run, device: next(times))
    options = tuning.configurations({"num_warps": 2, "num_stages": 1})
    assert tuning.launch("stage", (), torch.device("cpu"), options, lambda o: o) is options[0]


def test_while_a_graph_is_captured_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTWHITEN_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "capturing", lambda device: True)
    monkeypatch.setattr(tuning, "seconds", lambda run, device: pytest.fail("it was timed"))
    options = tuning.configurations({"num_warps": 2, "num_stages": 1})
    assert tuning.launch("stage", (), torch.device("cpu"), options, lambda o: o) is options[0]
    assert tuning._choices == {}


def test_the_clock_runs_every_round() -> None:
    runs: list[int] = []
    assert tuning.seconds(lambda: runs.append(1), torch.device("cpu")) >= 0.0
    assert len(runs) == 1 + tuning.ROUNDS


def test_other_values_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTWHITEN_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match=r"FASTWHITEN_AUTOTUNE: expected 0 .* or 1 .*, got 'yes'"):
        passes(20, 3)
