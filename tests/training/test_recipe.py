"""Whole runs of the recipe's parts together, on the digits."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from training.cli import parse
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import build_dataset
from training.engine.trainer import build_trainer
from training.reproducibility import resolve_seeds

RUNS = [
    "--sampler b3rs --bet-period 3 --statistics-batches ordinary --whitening fused "
    "--whitening-weights class-balanced",
    "--sampler b3rs --sampler_options.reading classes-images --sampler_options.r 0 "
    "--whitening cholesky --loss ldam-drw",
    "--sampler progressive --whitening iternorm --loss cb",
    "--sampler class-balanced --bet-period 2 --sampler_options.bet_schedule random "
    "--whitening batchnorm --loss balanced-softmax --loss_options.prior effective",
    "--sampler sqrt --whitening none --loss focal",
]


@pytest.mark.parametrize("arguments", RUNS)
def test_a_run_from_the_command_line(tmp_path, arguments: str):
    small = (
        "--optim.epochs 10 --optim.warmup_epochs 1 --model.width 4 --data.batch_size 64 "
        f"--output.root {tmp_path} --output.plots false"
    )
    _, config = parse(["train", *arguments.split(), *small.split()])
    summary = run_train(config, Console(file=io.StringIO()))
    assert summary["last"]["epoch"] == 10
    assert summary["last"]["train"]["loss"] > 0
    # Guessing has 10 %.
    assert summary["best"]["test"]["balanced_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("sampler", "loss"),
    [("b3rs", "ldam"), ("sqrt", "ldam-drw"), ("instance", "cb"), ("class-balanced", "focal")],
)
def test_a_batch_is_learned_by_heart(config: TrainConfig, sampler: str, loss: str):
    config.optim.weight_decay, config.optim.warmup_epochs, config.optim.lr = 0.0, 0, 0.5
    config.sampler, config.loss, config.whitening = sampler, loss, "fused"
    seeds = resolve_seeds(0, config.seeds)
    trainer = build_trainer(config, build_dataset(config, seeds.split), seeds, torch.device("cpu"))
    trainer.model.train()
    examples = next(trainer.feed.examples(trainer.sampler.batches(1), 1))
    losses, logits = [], None
    for _ in range(60):
        loss_value, logits = trainer.training_step(examples)
        losses.append(loss_value.item())
    assert losses[-1] < 0.2 * losses[0]
    assert (logits.argmax(1) == examples.labels).float().mean() > 0.95
