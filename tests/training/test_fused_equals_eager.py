"""Training with fused whitening follows training with eager whitening, step by step."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import torch

from training.config import TrainConfig
from training.data import build_dataset
from training.loop import build_trainer
from training.reproducibility import resolve_seeds

STEPS = 20


def _loss_curve(
    config: TrainConfig, whitening: str, seed: int, learning_rate: float, dtype: torch.dtype
) -> torch.Tensor:
    """Training losses of the first 20 steps, float64 [20]."""
    config.whitening = whitening
    config.seed = seed
    config.model.width = 8
    config.optim.lr = learning_rate
    config.optim.epochs, config.optim.warmup_epochs = 100, 5
    seeds = resolve_seeds(seed, config.seeds)
    trainer = build_trainer(config, build_dataset(config, seeds.split), seeds, torch.device("cpu"))
    trainer.model.to(dtype)
    trainer.loss.to(dtype)
    trainer.dataset = replace(trainer.dataset, mean=trainer.dataset.mean.to(dtype))
    losses: list[float] = []
    for epoch in range(1, 1 + -(-STEPS // len(trainer.sampler))):
        trainer.run_epoch(epoch, losses.append)
    return torch.tensor(losses[:STEPS], dtype=torch.float64)


def _difference(config: TrainConfig, seed: int, learning_rate: float, dtype: torch.dtype) -> float:
    """Largest difference of the fused curve in ``dtype`` from the eager one in float64."""
    fused = _loss_curve(config, "fused", seed, learning_rate, dtype)
    eager = _loss_curve(config, "eager", seed, learning_rate, torch.float64)
    assert eager[-1] < 0.8 * eager[0]  # the curves do go somewhere
    return (fused - eager).abs().max().item()


def test_float64_at_the_default_learning_rate(config: TrainConfig):
    # Rounding, 1e-16, grows about tenfold per three steps at this rate; 5e-10 was measured.
    assert _difference(config, seed=0, learning_rate=0.1, dtype=torch.float64) < 1e-7


def test_float32(config: TrainConfig):
    # 1e-5 is 100 roundings (6e-8) of a loss between 1 and 2; 2e-7 to 6e-7 was measured. Training is
    # no continuous map: in some runs a pre-activation lies within rounding of zero, a ReLU falls on
    # the other side, and two correct runs part by 1e-4 to 1e-2. Eager whitening in float32 leaves
    # its own float64 curve so in three of these five runs, fused in two: hence that curve is the
    # one to compare with, the median over seeds counts, and each has a bound.
    differences = [_difference(config, seed, 0.02, torch.float32) for seed in range(5)]
    assert median(differences) < 1e-5
    assert max(differences) < 3e-2
