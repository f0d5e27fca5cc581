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


class Offered(Exception):
    """Ends a launcher where it would launch; holds the configurations to choose from."""


def offered(monkeypatch: pytest.MonkeyPatch, launcher: Any, *arguments: Any) -> list[Any]:
    def launch(stage, shape_class, device, options, run):
        raise Offered(options)

    monkeypatch.setattr(tuning, "launch", launch)
    with pytest.raises(Offered) as caught:
        launcher(*arguments)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("size", "dtype", "warps"),
    [
        (16, torch.float32, [2, 4]),
        (16, torch.float64, [2]),
        (32, torch.float32, [4, 8]),
        (32, torch.float64, [8]),
        (64, torch.float32, [16]),
        (64, torch.float64, [8]),
    ],
)
def test_whole_matrices_in_float64_are_not_offered_more_warps(
    size: int, dtype: torch.dtype, warps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More warps leave a thread fewer registers than float64 needs: factor spills at order 16."""
    from fastwhiten.backends import stages
    from fastwhiten.kernels import backward_matrix, eigh, factor

    a, vector = torch.zeros(1, size, size, dtype=dtype), torch.zeros(1, size, dtype=dtype)
    found = offered(monkeypatch, eigh.launch_eigh, a)
    assert [o["num_warps"] for o in found] == warps
    for kind in stages.KINDS:
        arguments = (factor.launch_factor, a, None, None, 1.0, 0.1, kind)
        assert offered(monkeypatch, *arguments) == found
        arguments = (a, vector, a, a, None, None, 1.0, kind, 1e-4)
        others = offered(monkeypatch, backward_matrix.launch_backward_matrix, *arguments)
        # At order 16 the backward starts with four: two spill there.
        expected = [2 * w for w in warps] if size == 16 else warps
        assert [o["num_warps"] for o in others] == expected


@pytest.mark.parametrize(
    ("stage", "size", "dtype", "warps"),
    [
        ("statistics", 32, torch.float64, {4, 8}),
        ("statistics", 64, torch.float64, {8}),
        ("statistics", 64, torch.float32, {8, 16}),
        ("backward_reduce", 32, torch.float32, {4}),
        ("backward_reduce", 32, torch.bfloat16, {4}),
        ("backward_reduce", 32, torch.float64, {8, 16}),
        ("backward_reduce", 64, torch.float32, {8, 16}),
        ("sample_statistics", 32, torch.bfloat16, {4, 8}),
        ("sample_statistics", 64, torch.bfloat16, {16}),
        ("sample_statistics", 64, torch.float32, {16}),
    ],
)
def test_reductions_are_not_offered_what_spills(
    stage: str, size: int, dtype: torch.dtype, warps: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastwhiten.kernels import backward, sample, statistics

    t = torch.float64 if dtype == torch.float64 else torch.float32
    x, mean = torch.zeros(size, size, dtype=dtype), torch.zeros(size, dtype=t)
    found = {
        "statistics": lambda: offered(monkeypatch, statistics.launch_statistics, x, None, 1, t),
        "backward_reduce": lambda: offered(
            monkeypatch, backward.launch_backward_reduce, x, x, mean, 1
        ),
        "sample_statistics": lambda: offered(
            monkeypatch, sample.launch_sample_statistics, x, None, 1, t
        ),
    }[stage]()
    assert {o["num_warps"] for o in found} == warps
    if (stage, size) == ("statistics", 64):  # fewer rows spill in float32
        assert len({o["BLOCK_ROWS"] for o in found}) == 1


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
