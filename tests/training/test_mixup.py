"""mixup: what is mixed, with whom, and how the losses are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.config import TrainConfig
from training.data import build_dataset
from training.engine.mixup import Mixup
from training.engine.trainer import build_trainer
from training.reproducibility import resolve_seeds


def test_images_are_mixed_with_the_partners_in_one_share():
    images = torch.randn(16, 3, 4, 4)
    mixup = Mixup(1.0, seed=3)
    mixed = mixup(images, 2, 5)
    expected = mixed.share * images + (1 - mixed.share) * images[mixed.partners]
    assert torch.allclose(mixed.images, expected, atol=1e-6)
    assert sorted(mixed.partners.tolist()) == list(range(16))
    again, other = mixup(images, 2, 5), mixup(images, 2, 6)
    assert torch.equal(again.images, mixed.images)  # what a resumed run needs
    assert other.share != mixed.share


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float):
    mixup = Mixup(alpha, seed=0)
    shares = np.array([mixup(torch.zeros(2, 1, 1, 1), 1, i).share for i in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert shares.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("loss", ["ce", "cb", "logit-adjusted"])
def test_a_step_has_the_loss_of_both_labels(config: TrainConfig, loss: str):
    config.mixup, config.loss, config.whitening = 1.0, loss, "none"
    seeds = resolve_seeds(0, config.seeds)
    trainer = build_trainer(config, build_dataset(config, seeds.split), seeds, torch.device("cpu"))
    trainer.model.train()
    examples = next(trainer.feed.examples(trainer.sampler.batches(1), 1))
    value, logits = trainer.training_step(examples)
    mixed = Mixup(1.0, seeds.augmentation)(examples.images, 1, 0)
    labels = examples.labels
    assert 0.01 < mixed.share < 0.99 and not torch.equal(labels, labels[mixed.partners])
    parts = [trainer.loss(logits, part) for part in (labels, labels[mixed.partners])]
    expected = mixed.share * parts[0] + (1 - mixed.share) * parts[1]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
