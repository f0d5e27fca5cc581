"""Diagnostics of a long-tailed classifier: its features, its batches, its gradients, its Hessian.

The quantities are those that the abstracts and public reviews of arXiv 2112.05958 name; where they
give no formula, the formula is ours and stands in the function's docstring.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.data.base import LongTailedDataset
from training.evaluation.batches import (
    batch_covariances,
    covariance_fluctuation,
    mean_distinct_classes,
    relative_distance,
)
from training.evaluation.features import (
    correlation_matrix,
    covariance_matrix,
    effective_rank,
    gaussian_entropy,
    mean_abs_off_diagonal,
    second_moment_condition,
    singular_values,
    spectral_entropy,
)
from training.evaluation.gradients import class_gradients, mean_abs_cosine, weight_norms
from training.evaluation.hessian import hessian_condition
from training.evaluation.inspection import Inspection, inspect_split
from training.losses import ClassificationLoss, build_loss
from training.models import WhitenedClassifier
from training.reproducibility import resolve_seeds
from training.samplers import Batch, build_sampler


def feature_diagnostics(features: Tensor) -> dict[str, Any]:
    """Correlation, spectrum, entropies and condition of features [N, D]."""
    values = singular_values(features)  # [min(N, D)]
    spectrum = torch.zeros(features.shape[1], dtype=torch.float64)
    spectrum[: len(values)] = values.square()
    return {
        "mean_abs_correlation": mean_abs_off_diagonal(correlation_matrix(features)),
        "spectral_entropy": spectral_entropy(spectrum),
        "effective_rank": effective_rank(spectrum),
        "gaussian_entropy": gaussian_entropy(spectrum),
        "second_moment_condition": second_moment_condition(features),
        "singular_values": values.tolist(),
    }


def classifier_diagnostics(
    model: WhitenedClassifier, inspection: Inspection, hessian_rows: int
) -> dict[str, Any]:
    """Weight norms, and the Hessian's condition from at most ``hessian_rows`` images."""
    rows = evenly_spread(len(inspection.labels), hessian_rows)
    return {
        "hessian_condition": hessian_condition(inspection.after[rows], inspection.logits[rows]),
        "weight_norms": weight_norms(model.classifier.weight).tolist(),
    }


def evenly_spread(count: int, limit: int) -> Tensor:
    """At most ``limit`` of ``count`` positions, evenly spread: int64 [min(count, limit)].

    Example:
        >>> evenly_spread(10, 4).tolist(), evenly_spread(2, 4).tolist()
        ([0, 2, 5, 7], [0, 1])
    """
    size = min(count, limit)
    return torch.arange(size) * count // size


def batch_diagnostics(
    config: TrainConfig,
    model: WhitenedClassifier,
    dataset: LongTailedDataset,
    train: Inspection,
    epoch: int,
) -> dict[str, dict[str, Any]]:
    """What the batches of an epoch's plan do to covariance and gradient.

    The features are those of the checkpoint in evaluation mode, without augmentation, so that what
    differs between batches is their images alone.

    Returns:
        For "all" batches, and for "ordinary" and "balanced" ones if there are both, the figures.
    """
    seeds = resolve_seeds(config.seed, config.seeds)
    sampler = build_sampler(config, train.labels, seeds.sampler, dataset.num_classes)
    plan = list(sampler.batches(epoch))
    loss = build_loss(config, dataset.class_counts, sampler).to(model.classifier.weight.device)
    loss.set_epoch(epoch)
    kinds = sorted({batch.kind for batch in plan})
    groups: dict[str, list[Batch]] = {"all": plan}
    if len(kinds) > 1:
        groups.update({kind: [b for b in plan if b.kind == kind] for kind in kinds})
    covariance = covariance_matrix(train.before)
    running = getattr(model.whitening, "running_cov", None)
    result = {}
    for name, batches in groups.items():
        positions = [batch.positions for batch in batches]
        covariances = batch_covariances(train.before, positions)
        gradients = [_gradient(model, loss, train, batch) for batch in batches]
        norms = torch.stack([torch.linalg.vector_norm(g.double(), dim=1) for g in gradients])
        cosines = torch.tensor([mean_abs_cosine(g) for g in gradients])  # [T]
        result[name] = {
            "batches": len(batches),
            "distinct_classes": mean_distinct_classes(train.labels, positions),
            "covariance_fluctuation": covariance_fluctuation(covariances),
            "distance_to_split": relative_distance(covariances, covariance),
            "distance_to_running": (
                None if running is None else relative_distance(covariances, running)
            ),
            "gradient_cosine": cosines.nanmean().item(),
            "gradient_norms": norms.mean(0).tolist(),
        }
    return result


def _gradient(
    model: WhitenedClassifier, loss: ClassificationLoss, train: Inspection, batch: Batch
) -> Tensor:
    """Gradient of a batch's training loss in the classifier's weight, [K, D] on the CPU.

    The features come whitened with the running statistics.
    """
    device = model.classifier.weight.device
    features = train.after[batch.positions].to(device)
    labels = train.labels[batch.positions].to(device)

    def batch_loss(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = loss(logits, labels, batch.kind)
        return value

    return class_gradients(model.classifier, batch_loss, features, labels).cpu()


def diagnose(
    config: TrainConfig,
    model: WhitenedClassifier,
    dataset: LongTailedDataset,
    split: str,
    hessian_rows: int,
    epoch: int,
) -> dict[str, Any]:
    """Compute all diagnostics of a model, as plain containers.

    Args:
        config: Of the run: sampler and loss.
        model: On the device of the data set.
        dataset: The run's.
        split: Whose features; the batches are always those of the training split.
        hessian_rows: See `DiagnoseConfig`.
        epoch: Whose batches, from 1; the one that ended with this model.
    """
    inspection = inspect_split(model, dataset, split)
    train = inspection if split == "train" else inspect_split(model, dataset, "train")
    return {
        "split": split,
        "images": len(inspection.labels),
        "before": feature_diagnostics(inspection.before),
        "after": feature_diagnostics(inspection.after),
        "classifier": classifier_diagnostics(model, inspection, hessian_rows),
        "batches": batch_diagnostics(config, model, dataset, train, epoch),
    }
