"""The formulas of stage 2 against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.errors import ConfigError
from training.stage2.weights import class_means, nearest_mean, tau_normalise

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(5, 7))
FEATURES = RNG.normal(size=(40, 7)) + 2.0
LABELS = np.concatenate([np.arange(5), RNG.integers(0, 5, 35)])


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 2.0])
def test_tau_norm_is_the_paper_s_formula(tau: float):
    expected = np.stack([row / np.sqrt((row**2).sum()) ** tau for row in WEIGHT])
    found = tau_normalise(torch.from_numpy(WEIGHT), tau)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_tau_zero_leaves_every_bit_and_a_zero_row_stays():
    weight = torch.from_numpy(WEIGHT).float()
    weight[2] = 0
    assert torch.equal(tau_normalise(weight, 0.0), weight)
    assert torch.equal(tau_normalise(weight, 1.5)[2], torch.zeros(7))


def test_class_means_are_the_means():
    found = class_means(torch.from_numpy(FEATURES).float(), torch.from_numpy(LABELS), 5)
    expected = np.stack([FEATURES.astype(np.float32)[LABELS == k].mean(0) for k in range(5)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_class_without_images_is_named():
    with pytest.raises(ConfigError, match=r"found none of the classes \[5\]"):
        class_means(torch.from_numpy(FEATURES), torch.from_numpy(LABELS), 6)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_largest_logit_is_at_the_nearest_mean(distance: str):
    means = WEIGHT * np.array([[0.2], [1.0], [3.0], [1.0], [9.0]])  # lengths that matter
    weight, bias = (p.numpy() for p in nearest_mean(torch.from_numpy(means), distance))
    logits = FEATURES @ weight.T + bias
    if distance == "euclidean":
        distances = ((FEATURES[:, None] - means) ** 2).sum(-1)
        offsets = logits + 0.5 * distances  # |z|^2 / 2, the same for all classes
        np.testing.assert_allclose(offsets, offsets[:, :1] + np.zeros(5), rtol=1e-10)
    else:
        lengths = np.linalg.norm(FEATURES, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        distances = 1 - FEATURES @ means.T / lengths
    np.testing.assert_array_equal(logits.argmax(1), distances.argmin(1))
    assert len(set(logits.argmax(1))) > 1
