"""The recipe's training step on the device: captured in graphs, and on several streams at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.gpu.device import DEVICE, DRY_RUN
from tests.helpers.recording import record
from training.config import TrainConfig, validate
from training.data import build_dataset
from training.engine import trainer as engine
from training.engine.graphs import own_stream
from training.engine.trainer import Trainer, build_trainer
from training.reproducibility import cpu_threads, deterministic_algorithms, resolve_seeds

EPOCHS = 3


@pytest.fixture(autouse=True)
def _as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DRY_RUN:
        monkeypatch.setattr(engine, "check_cuda_graph", lambda device, processes: None)
        monkeypatch.setattr(engine, "CudaCapture", lambda: record)
    with cpu_threads(1), deterministic_algorithms(True):
        yield


def _trainer(precision: str, seed: int = 0) -> Trainer:
    config = TrainConfig(sampler="b3rs", bet_period=3, precision=precision, seed=seed)
    config.cuda_graph, config.channels_last = True, True
    config.model.width, config.whitening_options.groups = 16, 4
    config.data.batch_size, config.data.drop_last = 48, False
    config.optim.epochs = EPOCHS
    validate(config)
    seeds = resolve_seeds(config.seed, config.seeds)
    return build_trainer(config, build_dataset(config, seeds.split), seeds, DEVICE)


def _assert_same_bits(one: Trainer, other: Trainer) -> None:
    assert one.step == other.step == EPOCHS * len(one.sampler)
    expected = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_have_the_bits_of_others(precision: str) -> None:
    with own_stream(DEVICE):
        graphed, plain = _trainer(precision), _trainer(precision)
        plain.graphs = None
        for _ in range(EPOCHS):
            ours, theirs = graphed.run_epoch(), plain.run_epoch()
            assert (ours.loss, ours.accuracy) == (theirs.loss, theirs.accuracy)
    _assert_same_bits(graphed, plain)


def test_runs_on_streams_of_their_own_do_not_touch_each_other() -> None:
    """Three take turns, step by step; each has the bits that it has alone."""
    runs = [(_trainer("bf16", seed), _stream()) for seed in range(3)]
    if not DRY_RUN:
        torch.cuda.synchronize()
    for _ in range(EPOCHS):
        working = [(trainer.epoch(), stream) for trainer, stream in runs]
        while working:
            for work, stream in list(working):
                with nullcontext() if stream is None else torch.cuda.stream(stream):
                    if next(work, None) is None:
                        working.remove((work, stream))
    for seed, (trainer, _) in enumerate(runs):
        with own_stream(DEVICE):
            alone = _trainer("bf16", seed)
            for _ in range(EPOCHS):
                alone.run_epoch()
        _assert_same_bits(trainer, alone)


def _stream() -> torch.cuda.Stream | None:
    return None if DRY_RUN else torch.cuda.Stream()
