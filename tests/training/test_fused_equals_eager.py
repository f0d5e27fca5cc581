"""Training with fused whitening follows training with eager whitening, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config import TrainConfig
from training.data import build_dataset
from training.data.feed import Examples
from training.engine.trainer import Trainer, build_trainer
from training.reproducibility import resolve_seeds

STEPS = 20


def _trainer(config: TrainConfig, whitening: str, seed: int, lr: float, dtype: torch.dtype):
    config.whitening = whitening
    config.seed = seed
    config.model.width = 8
    config.optim.lr = lr
    config.optim.epochs, config.optim.warmup_epochs = 100, 5
    seeds = resolve_seeds(seed, config.seeds)
    trainer = build_trainer(config, build_dataset(config, seeds.split), seeds, torch.device("cpu"))
    trainer.model.to(dtype)
    trainer.loss.to(dtype)
    trainer.feed.dataset = replace(trainer.dataset, mean=trainer.dataset.mean.to(dtype))
    return trainer


def _run(trainer: Trainer) -> torch.Tensor:
    """Training losses of the first 20 steps, float64 [20]."""
    losses: list[float] = []
    while len(losses) < STEPS:
        trainer.run_epoch(losses.append)
    return torch.tensor(losses[:STEPS], dtype=torch.float64)


def _loss_curve(
    config: TrainConfig, whitening: str, seed: int, lr: float, dtype: torch.dtype
) -> torch.Tensor:
    return _run(_trainer(config, whitening, seed, lr, dtype))


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert other[-1] < 0.8 * other[0]  # the curves do go somewhere
    return (one - other).abs().max().item()


def test_float64_at_the_default_learning_rate(config: TrainConfig):
    # Rounding, 1e-16, grows about tenfold per three steps at this rate; 5e-10 was measured.
    fused, eager = (
        _loss_curve(config, whitening, 0, 0.1, torch.float64) for whitening in ("fused", "eager")
    )
    assert _apart(fused, eager) < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_float32_from_the_same_weights(config: TrainConfig, seed: int):
    """Each of 20 steps of an eager run, taken again with fused whitening from its weights."""
    eager = _trainer(config, "eager", seed, 0.02, torch.float32)
    weights: list[list[torch.Tensor]] = []
    take_eager, losses = eager.training_step, []

    def record(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        weights.append([p.detach().clone() for p in eager.model.parameters()])
        result = take_eager(examples)
        losses.append(result[0].item())
        return result

    eager.training_step = record
    _run(eager)
    fused = _trainer(config, "fused", seed, 0.02, torch.float32)
    take_fused, differences = fused.training_step, []

    def repeat(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        step = len(differences)
        with torch.no_grad():
            for p, recorded in zip(fused.model.parameters(), weights[step], strict=True):
                p.copy_(recorded)
        result = take_fused(examples)
        differences.append(abs(result[0].item() - losses[step]))
        return result

    fused.training_step = repeat
    _run(fused)
    assert losses[STEPS - 1] < 0.8 * losses[0]  # the run does go somewhere
    # 1e-5 is 100 roundings (6e-8) of a loss between 1 and 2; 2e-7 to 4e-7 was measured.
    assert len(differences) >= STEPS and max(differences) < 1e-5


@pytest.mark.slow
def test_float32_on_its_own_way(config: TrainConfig):
    """Left alone, fused whitening stays as near to the exact curve as eager in float32 does.

    Training is no continuous map: in up to half of the runs a pre-activation lies within rounding
    of zero in one of 20 steps, a ReLU falls on the other side, and two correct runs part by 1e-4 to
    6e-2. So the lower quartile over seeds is compared, and how many runs do not part.
    """
    fused, eager = [], []
    for seed in range(10):
        exact = _loss_curve(config, "eager", seed, 0.02, torch.float64)
        fused.append(_apart(_loss_curve(config, "fused", seed, 0.02, torch.float32), exact))
        eager.append(_apart(_loss_curve(config, "eager", seed, 0.02, torch.float32), exact))
    assert sorted(fused)[2] < min(1e-5, 2 * sorted(eager)[2])
    assert sum(value < 1e-5 for value in fused) >= sum(value < 1e-5 for value in eager) - 2
