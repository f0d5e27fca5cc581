"""Schedule, accuracies and diagnostics against hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from training.engine.optim import learning_rate_factor
from training.evaluation.features import correlation_matrix, mean_abs_off_diagonal
from training.evaluation.metrics import (
    Evaluation,
    ShotGroups,
    Tally,
    confusion_matrix,
    evaluate_counts,
)
from training.losses import evaluation_loss
from training.runs.folder import without_nan


def _evaluate(confusion: torch.Tensor, groups: ShotGroups, loss: float) -> Evaluation:
    counts = (confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    return evaluate_counts(*counts, groups, loss, math.nan, confusion)


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
    result = _evaluate(confusion, ShotGroups(many=(0, 1), medium=(2,), few=()), loss=0.5)
    assert result.per_class == [0.75, 0.5, 1.0]
    assert result.accuracy == 0.75
    assert result.balanced_accuracy == 0.75
    assert result.groups["many"] == 0.625
    assert result.groups["medium"] == 1.0
    assert math.isnan(result.groups["few"])  # an empty group is not 0


def test_macro_figures_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (60,), generator=generator)  # class 5 has no image
    predictions = torch.randint(6, (60,), generator=generator)
    predictions[predictions == 2] = 3  # class 2 is never predicted
    groups = ShotGroups.from_counts([1] * 6)
    result = _evaluate(confusion_matrix(labels, predictions, 6), groups, loss=0.0)
    options = {"labels": range(5), "average": "macro", "zero_division": 0}
    precision, _, f1, _ = precision_recall_fscore_support(labels, predictions, **options)
    assert result.macro_precision == pytest.approx(precision)
    assert result.macro_f1 == pytest.approx(f1)
    assert result.worst_class == 2 and result.worst_class_accuracy == 0.0


@pytest.mark.parametrize("num_classes", [3, 1200])  # with and without a confusion matrix
def test_a_tally_is_that_of_torchmetrics(num_classes: int):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(300, num_classes, generator=generator)
    labels = logits.argmax(1)
    labels[::3] = torch.randint(num_classes, (100,), generator=generator)
    # Confidences on the edges of bins: 1/3 exactly (5 / 15), and 1.
    logits[0], logits[1, 0] = 0.0, 1e9
    parts = [Tally(num_classes, torch.device("cpu")) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, None, 2), slice(1, None, 2)), strict=True):
        loss = evaluation_loss(logits[rows], labels[rows])
        part.add(logits[rows], labels[rows], loss)
    parts[0].counts += parts[1].counts  # what two processes do
    parts[0].sums += parts[1].sums
    result = parts[0].evaluation(ShotGroups.from_counts([1] * num_classes))
    metric = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
    assert result.ece == pytest.approx(metric(logits, labels).item(), abs=1e-6)
    assert result.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)
    recall = MulticlassAccuracy(num_classes, average="none")(logits, labels)
    present = torch.bincount(labels, minlength=num_classes) > 0
    assert torch.allclose(torch.tensor(result.per_class)[present], recall[present])
    assert (result.confusion is None) == (num_classes > 1000)
    whole = _evaluate(
        confusion_matrix(labels, logits.argmax(1), num_classes),
        ShotGroups.from_counts([1] * num_classes),
        result.loss,
    )
    assert result.macro_f1 == whole.macro_f1 and result.macro_precision == whole.macro_precision


def test_a_class_without_images_is_nan_and_null():
    confusion = torch.tensor([[2, 0], [0, 0]])
    result = _evaluate(confusion, ShotGroups(many=(0,), medium=(), few=(1,)), loss=0.0)
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
