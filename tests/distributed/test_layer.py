"""``ChannelWhitening(process_group=...)``: the same layer on every process, trained as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.distributed import layer_cases
from tests.distributed.processes import Processes
from tests.helpers import spectra

pytestmark = pytest.mark.xdist_group("distributed")

SIZES = (7, 16, 1)

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cumulative average": {"momentum": None, "kind": "cholesky"},
    "groups": {"groups": 3, "kind": "pca"},
    "running matrix": {"running": "matrix"},
    "blending": {"batch_weight": 0.3, "momentum": 0.5},
    "blending and shrinkage": {"batch_weight": 0.5, "shrinkage": "ledoit-wolf", "groups": 2},
    "affine": {"affine": True, "shrinkage": "oas"},
    "few rows": {"affine": True},
    "few rows, running matrix": {"running": "matrix"},
}


def close(value: Tensor, expected: Tensor) -> None:
    """Float64: the same stages in another order of adding up."""
    torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-11)


def same_bits(states: list[dict[str, Tensor]]) -> None:
    for other in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", OPTIONS)
def test_trains_as_one_process(name: str, backend: str, processes: Processes) -> None:
    options = {**OPTIONS[name], "backend": backend}
    channels = 30 if name.startswith("few rows") else 6
    batches = [spectra.random(sum(SIZES), channels, seed) for seed in range(3)]
    results = processes.run(layer_cases.train_layer, batches, SIZES, options)
    same_bits([r[0] for r in results])
    layer = ChannelWhitening(channels, dtype=torch.float64, **options)
    for i, x in enumerate(batches):
        layer.zero_grad()
        y = layer(x)
        close(torch.cat([r[1][i] for r in results]), y)
        if layer.weight is not None:
            (y * torch.linspace(-1, 1, channels)).square().sum().backward()
    for key, value in layer.state_dict().items():
        close(results[0][0][key], value)
    if layer.weight is not None:
        # Each process has the part of its own rows; a reducer adds or averages them.
        close(torch.stack([r[2] for r in results]).sum(0), layer.weight.grad)
        assert not torch.allclose(results[0][2], results[1][2])


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_nan_on_one_process_leaves_all_statistics(running: str, processes: Processes) -> None:
    sizes, good = (12, 8), spectra.random(20, 6)
    bad = good.clone()
    bad[15, 2] = float("nan")
    options = {"running": running}
    once = processes.run(layer_cases.train_layer, [good], sizes, options)[:2]
    twice = processes.run(layer_cases.train_layer, [good, bad], sizes, options)[:2]
    same_bits([r[0] for r in once + twice])
    assert int(twice[0][0]["num_batches_tracked"]) == 1
    assert all(torch.isnan(r[1][1]).all() for r in twice)


def test_a_process_without_rows_follows(processes: Processes) -> None:
    batches = [spectra.random(20, 6, seed) for seed in range(2)]
    results = processes.run(layer_cases.train_layer, batches, (20, 0, 0), {"affine": True})
    same_bits([r[0] for r in results])
    assert torch.equal(results[1][2], torch.zeros(6))


def test_evaluation_does_not_wait_for_others(processes: Processes) -> None:
    assert processes.run(layer_cases.evaluate_alone, spectra.random(9, 4)) == [0, 0, 0]


def test_copies_share_the_group(processes: Processes) -> None:
    for outputs in processes.run(layer_cases.copies, spectra.random(20, 4), (12, 8))[:2]:
        assert torch.equal(*outputs)


@pytest.mark.parametrize("alone", [False, True], ids=["", "rank 0 evaluates"])
@pytest.mark.parametrize("sizes", [(13, 6), (4, 9, 6)], ids=["group of two", "world"])
def test_distributed_data_parallel(
    sizes: tuple[int, ...], alone: bool, processes: Processes
) -> None:
    """Unequal batches, the loss weighed accordingly: bit for bit alike, and as one process."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (spectra.random(19, 5, seed), torch.randint(3, (19,), generator=generator))
        for seed in range(3)
    ]
    states = processes.run(layer_cases.train_network, batches, sizes, alone)[: len(sizes)]
    same_bits(states)
    model = layer_cases.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        (layer_cases.batch_loss(model(x), y) / len(x)).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        close(states[0][key], value)


def test_convert_sync() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(ChannelWhitening(4)), nn.BatchNorm1d(4))
    assert ChannelWhitening.convert_sync(model) is model
    assert model[1][0].process_group == "world"
    assert "process_group='world'" in repr(model[1][0])
    with pytest.raises(ValueError, match=r"ChannelWhitening: .*init_process_group"):
        model(torch.randn(6, 3))
    model.eval()(torch.randn(6, 3))  # evaluation needs no group
    model.train()
    assert ChannelWhitening.convert_sync(model, None)[1][0].process_group is None
    model(torch.randn(6, 3))
    with pytest.raises(TypeError, match=r"convert_sync: expected process_group .* got list"):
        ChannelWhitening.convert_sync(model, [0, 1])


def test_none_is_as_before() -> None:
    x = spectra.random(12, 4)
    layer = ChannelWhitening(4, process_group=None, dtype=torch.float64)
    assert torch.equal(layer(x), fastwhiten.whiten(x)) and "process_group" not in repr(layer)
