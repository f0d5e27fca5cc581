"""What a model makes of a split: features, logits and labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from training.data.base import FileSplit, LongTailedDataset, Split
from training.errors import ConfigError
from training.evaluation.evaluate import collect_features, evaluating
from training.evaluation.features import correlation_matrix, mean_abs_off_diagonal
from training.evaluation.gradients import weight_norms
from training.models import WhitenedClassifier


@dataclass(frozen=True)
class Inspection:
    """A split as the model sees it, in evaluation mode, on the CPU.

    Attributes:
        split: Name of the split.
        before: Features before the whitening layer, [N, D].
        after: Features after it, which the classifier sees, [N, D].
        logits: [N, K].
        labels: int64 [N].
    """

    split: str
    before: Tensor
    after: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ModelView:
    """What the pictures of a model show.

    Attributes:
        checkpoint: Name of the checkpoint, "last" or "best".
        inspection: Of one split.
        weight_norms: Norm of each class's weight vector, float64 [K].
        correlations: Feature correlation "before" and "after" whitening, float64 [D, D].
        mean_abs_correlation: Mean |off-diagonal| of each.
    """

    checkpoint: str
    inspection: Inspection
    weight_norms: Tensor
    correlations: dict[str, Tensor]
    mean_abs_correlation: dict[str, float]


def inspect_split(model: WhitenedClassifier, dataset: LongTailedDataset, name: str) -> Inspection:
    """Compute features and logits of the split "train", "validation" or "test".

    Raises:
        ConfigError: If the data set has no image there.
    """
    split: Split | FileSplit | None = getattr(dataset, name)
    if split is None or len(split) == 0:
        raise ConfigError(
            f"split: expected one with images, {dataset.name} has no {name} split; "
            "use --split test or train."
        )
    return inspect_images(model, dataset, split, name)


def inspect_images(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split | FileSplit, name: str
) -> Inspection:
    """Compute features and logits of images, prepared as those of the data set."""
    before, after = collect_features(model, dataset, split)
    device = next(model.classifier.parameters()).device
    with evaluating(model):
        logits = model.classifier(after.to(device)).float().cpu()  # [N, K]
    return Inspection(name, before.float(), after.float(), logits, split.labels.cpu())


def view_model(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: str, checkpoint: str = "last"
) -> ModelView:
    """Compute what the pictures of a model show, on the split "validation" or "test".

    Raises:
        ConfigError: If the data set has no image there.
    """
    inspection = inspect_split(model, dataset, split)
    correlations = {
        "before": correlation_matrix(inspection.before),
        "after": correlation_matrix(inspection.after),
    }
    return ModelView(
        checkpoint=checkpoint,
        inspection=inspection,
        weight_norms=weight_norms(model.classifier.weight),
        correlations=correlations,
        mean_abs_correlation={
            name: mean_abs_off_diagonal(matrix) for name, matrix in correlations.items()
        },
    )
