"""Out-of-distribution detection: which images are of no class that the model was trained on?

Every score is higher for images that look foreign. In-distribution images are those of one of the
run's splits; class means and covariances are of its training split, without augmentation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from training.config import TrainConfig
from training.config.datasets import DATASETS
from training.data import LongTailedDataset, Split, build_dataset
from training.errors import ConfigError
from training.evaluation.inspection import Inspection, inspect_images, inspect_split
from training.models import WhitenedClassifier

RIDGE = 1e-3
_ACCEPTED = 0.95
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def nearest_mean_distance(features: Tensor, means: Tensor) -> Tensor:
    """Squared Euclidean distance to the nearest class mean: [N, D], [K, D] -> float64 [N].

    Of whitened features it is the Mahalanobis distance with the covariance that whitened them.

    Example:
        >>> means = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> round(nearest_mean_distance(torch.tensor([[3.0, 2.0]]), means).item(), 9)
        5.0
    """
    distances = torch.cdist(features.double(), means.double())  # [N, K]
    return distances.amin(1).square()


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Mean of each class that has images: [N, D], int64 [N] -> float64 [K', D]."""
    return torch.stack([features[labels == k].double().mean(0) for k in labels.unique()])


def pooled_distance(features: Tensor, train: Tensor, labels: Tensor) -> Tensor:
    """Mahalanobis distance on the unit sphere, with one covariance for all classes.

    As arXiv 2605.17799 describes its detector: features of unit norm, class means, and the pooled
    covariance around them with a ridge. The ridge is not in its abstract; here it is `RIDGE` times
    the mean variance.

    Args:
        features: To score, [N, D].
        train: Of the training images, [M, D].
        labels: Their classes, int64 [M].

    Returns:
        Squared distance to the nearest class mean, float64 [N].
    """
    unit, train = (functional.normalize(x.double(), dim=1) for x in (features, train))
    _, place = labels.unique(return_inverse=True)  # [M]
    means = class_means(train, labels)  # [K, D]
    centred = train - means[place]
    root = _cholesky(centred.T @ centred / len(train))  # [D, D]
    return nearest_mean_distance(_solve(root, unit), _solve(root, means))


def raw_distance(features: Tensor, train: Tensor, labels: Tensor) -> Tensor:
    """Mahalanobis distance with a covariance of each class, features as they are.

    What the same paper improves on. A class of few images has a singular covariance: the ridge is
    the same share of its own mean variance, and a class of one image is left out.

    The arguments are those of `pooled_distance`.
    """
    nearest = torch.full((len(features),), math.inf, dtype=torch.float64)
    for k in labels.unique():
        own = train[labels == k].double()  # [n, D]
        centred = own - own.mean(0)
        covariance = centred.T @ centred / len(own)
        if len(own) < 2 or covariance.trace() == 0:
            continue
        moved = _solve(_cholesky(covariance), features.double() - own.mean(0))
        nearest = torch.minimum(nearest, moved.square().sum(1))
    return nearest


def _cholesky(covariance: Tensor) -> Tensor:
    """Lower root of the covariance with its ridge, [D, D]."""
    ridge = RIDGE * covariance.diagonal().mean()
    return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))


def _solve(root: Tensor, rows: Tensor) -> Tensor:
    """Multiply rows [N, D] by the root's inverse."""
    return torch.linalg.solve_triangular(root, rows.T, upper=False).T


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a foreign image has the higher score, a tie counting half.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    foreign = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(foreign, torch.cat([inside, outside]).numpy()))


def false_positive_rate(inside: Tensor, outside: Tensor) -> float:
    """Share of foreign images that are accepted where 95 % of the own ones are (FPR at 95 % TPR).

    Example:
        >>> false_positive_rate(torch.arange(100.0), torch.tensor([10.0, 94.0, 95.0, 200.0]))
        0.5
    """
    threshold = inside.sort().values[math.ceil(_ACCEPTED * len(inside)) - 1]
    return (outside <= threshold).double().mean().item()


def scores(train: Inspection, other: Inspection, has_layer: bool) -> dict[str, Tensor]:
    """Scores of a split's images, float64 [N] each; see the module.

    Returns:
        max_softmax (minus the largest probability), mahalanobis_layer (the distance with the
        layer's running statistics; only where there is a layer), mahalanobis_pooled and
        mahalanobis_raw, these two from the features before the layer.
    """
    found = {"max_softmax": -other.logits.double().softmax(1).amax(1)}
    if has_layer:
        means = class_means(train.after, train.labels)
        found["mahalanobis_layer"] = nearest_mean_distance(other.after, means)
    found["mahalanobis_pooled"] = pooled_distance(other.before, train.before, train.labels)
    found["mahalanobis_raw"] = raw_distance(other.before, train.before, train.labels)
    return found


def foreign_split(name: str, root: str | None, own: LongTailedDataset) -> Split:
    """Return the test images of another data set, made to look like those of a run's data set.

    They are brought to its range of values, to grey (BT.601) or to three equal channels, and
    resized (bilinear, antialiased) to its size.

    Raises:
        ConfigError: If there is no such data set, or it is the run's own.
    """
    known = [other for other in DATASETS if other != own.name]
    if name not in known:
        raise ConfigError(f"ood: expected another data set than the run's, out of {known}: {name}.")
    config = TrainConfig(dataset=name, imbalance_factor=1)  # nothing of the test is cut in any case
    resident = "resident" in DATASETS[name].options
    config.data = replace(config.data, root=root, resident=resident, validation_per_class=0)
    dataset = build_dataset(config, 0)
    facts = own.preparation()
    assert isinstance(dataset.test, Split)
    images = dataset.test.images.float() / dataset.white  # [N, C, h, w]
    if images.shape[1] != facts["channels"]:
        grey = images if images.shape[1] == 1 else (images * _column(_LUMA)).sum(1, keepdim=True)
        images = grey.expand(-1, facts["channels"], -1, -1)
    if list(images.shape[2:]) != facts["size"]:
        images = functional.interpolate(images, facts["size"], mode="bilinear", antialias=True)
    images = (images.clamp(0, 1) * facts["white"]).round().byte()
    return Split(images, dataset.test.labels, dataset.test.indices)


def _column(values: tuple[float, ...]) -> Tensor:
    """Values of channels, [C, 1, 1]."""
    return torch.tensor(values)[:, None, None]


def ood_diagnostics(
    model: WhitenedClassifier,
    dataset: LongTailedDataset,
    split: str,
    foreign: dict[str, Split],
) -> dict[str, Any]:
    """AUROC and FPR at 95 % TPR of every score, for every foreign data set.

    Args:
        model: On the device of the data set.
        dataset: The run's.
        split: Its images that are to be told from the foreign ones.
        foreign: From a data set's name to its images (`foreign_split`).
    """
    if not foreign:
        return {}
    has_layer = not isinstance(model.whitening, torch.nn.Identity)
    train = inspect_split(model, dataset, "train")
    inside = scores(train, inspect_split(model, dataset, split), has_layer)
    result: dict[str, Any] = {}
    for name, images in foreign.items():
        here = images.to(dataset.device)
        outside = scores(train, inspect_images(model, dataset, here, name), has_layer)
        result[name] = {
            "images": len(images),
            **{
                score: {
                    "auroc": auroc(values, outside[score]),
                    "fpr95": false_positive_rate(values, outside[score]),
                }
                for score, values in inside.items()
            },
        }
    return result
