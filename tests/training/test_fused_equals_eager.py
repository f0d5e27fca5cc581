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


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert other[-1] < 0.8 * other[0]  # the curves do go somewhere
    return (one - other).abs().max().item()


def test_float64_at_the_default_learning_rate(config: TrainConfig):
    # Rounding, 1e-16, grows about tenfold per three steps at this rate; 5e-10 was measured.
    fused, eager = (
        _loss_curve(config, whitening, 0, 0.1, torch.float64) for whitening in ("fused", "eager")
    )
    assert _apart(fused, eager) < 1e-7


def test_float32(config: TrainConfig):
    # 1e-5 is 100 roundings (6e-8) of a loss between 1 and 2; 2e-7 to 6e-7 was measured. Training is
    # no continuous map: in some runs a pre-activation lies within rounding of zero, a ReLU falls on
    # the other side, and two correct runs part by 1e-4 to 1e-2. Eager whitening in float32 leaves
    # its own float64 curve so in three of these five runs, fused in two: hence that curve is the
    # one to follow for 20 steps, and eager in float32 for the first ten. The median over seeds
    # counts, and each has a bound.
    from_exact, from_eager = [], []
    for seed in range(5):
        fused = _loss_curve(config, "fused", seed, 0.02, torch.float32)
        exact = _loss_curve(config, "eager", seed, 0.02, torch.float64)
        eager = _loss_curve(config, "eager", seed, 0.02, torch.float32)
        from_exact.append(_apart(fused, exact))
        from_eager.append((fused - eager)[: STEPS // 2].abs().max().item())
    assert median(from_exact) < 1e-5
    assert median(from_eager) < 1e-5
    assert max(from_exact) < 3e-2
