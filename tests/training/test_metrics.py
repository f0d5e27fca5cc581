"""Schedule, accuracies and diagnostics against hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch

from training.diagnostics import correlation_matrix, mean_abs_off_diagonal
from training.files import without_nan
from training.metrics import ShotGroups, confusion_matrix, evaluate_confusion
from training.optim import learning_rate_factor


def test_schedule_by_hand():
    rates = [learning_rate_factor(step, total_steps=8, warmup_steps=4) for step in range(9)]
    half = math.sqrt(0.5) / 2
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0]
    assert rates == pytest.approx(expected)
    assert learning_rate_factor(0, total_steps=4, warmup_steps=0) == 1.0
    assert learning_rate_factor(3, total_steps=4, warmup_steps=4) == 1.0


def test_groups_at_the_thresholds():
    groups = ShotGroups.from_counts([500, 101, 100, 20, 19, 1])
    assert groups.as_dict() == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    assert [groups.of(k) for k in range(6)] == ["many", "many", "medium", "medium", "few", "few"]


def test_accuracies_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predictions = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2])
    confusion = confusion_matrix(labels, predictions, 3)
    assert confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]
    result = evaluate_confusion(confusion, ShotGroups(many=(0, 1), medium=(2,), few=()), loss=0.5)
    assert result.per_class == [0.75, 0.5, 1.0]
    assert result.accuracy == 0.75
    assert result.balanced_accuracy == 0.75
    assert result.groups["many"] == 0.625
    assert result.groups["medium"] == 1.0
    assert math.isnan(result.groups["few"])  # an empty group is not 0


def test_a_class_without_images_is_nan_and_null():
    confusion = torch.tensor([[2, 0], [0, 0]])
    result = evaluate_confusion(confusion, ShotGroups(many=(0,), medium=(), few=(1,)), loss=0.0)
    assert math.isnan(result.per_class[1])
    assert result.balanced_accuracy == 1.0
    plain = without_nan(result.as_dict())
    assert (plain["few"], plain["medium"], plain["per_class"]) == (None, None, [1.0, None])


def test_correlation_by_hand():
    # Channels: a, -a, orthogonal to a, constant.
    a = torch.tensor([1.0, -1.0, 1.0, -1.0])
    b = torch.tensor([1.0, 1.0, -1.0, -1.0])
    features = torch.stack([a, -a, b, torch.full((4,), 0.1)], dim=1)  # [4, 4]
    correlation = correlation_matrix(features)
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(correlation[:3, :3], expected)
    assert correlation[3].isnan().all()
    assert mean_abs_off_diagonal(correlation) == pytest.approx(1 / 3)
