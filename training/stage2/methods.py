"""The methods of stage 2: each makes candidates for the classifier, and one of them is chosen."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.config import Stage2Config
from training.errors import ConfigError
from training.models import NearestMean, WhitenedClassifier
from training.stage2.train_classifier import FeatureBatches, ScaledLogits, train_classifier
from training.stage2.weights import (
    adjust_logits,
    centred_directions,
    class_means,
    nearest_mean,
    tau_normalise,
)


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen.

    Attributes:
        classifier: The layer, of the kind that the run's model has, or a `NearestMean`.
        train: Mean loss and accuracy on what it was made from.
        learning_rate: Rate of the last step; 0 without training.
        step: Steps so far.
        images: Images used for this candidate.
        seconds: Wall time it took.
        detail: What tells this candidate from the others, for instance tau.
        statistics: Running statistics of the model that belong to it, by their names in its
            state_dict; empty where they are the run's.
    """

    classifier: nn.Module
    train: dict[str, float]
    learning_rate: float = 0.0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def install(self, model: WhitenedClassifier) -> None:
        """Make it the model's classifier, with its running statistics."""
        model.classifier = self.classifier
        if self.statistics:
            model.load_state_dict(self.statistics, strict=False)


@dataclass(frozen=True)
class Material:
    """What a method works with. The test split is not among it.

    Attributes:
        model: The run's model on the device, in evaluation mode but while it computes features with
            ``backbone`` train.
        fresh: A classifier of the same kind with new weights, on the device.
        features: Whitened training features float32 [N', D], without augmentation; called when
            needed.
        labels: Their classes int64 [N'].
        batches: Batches of features for training, of an epoch.
        class_counts: Training images per class, those held out included, int64 [K].
        num_classes: K.
    """

    model: WhitenedClassifier
    fresh: nn.Module
    features: Callable[[], Tensor]
    labels: Tensor
    batches: Callable[[int], FeatureBatches]
    class_counts: Tensor
    num_classes: int


def _linear(material: Material, method: str) -> nn.Linear:
    """The run's classifier, if formulas for linear layers hold for it."""
    classifier = material.model.classifier
    if type(classifier) is not nn.Linear or classifier.bias is None:
        raise ConfigError(
            f"method: expected a run whose classifier is a linear layer with a bias for {method}, "
            f"got {type(classifier).__name__}; use crt, which retrains a classifier of any kind, "
            "or a run with another loss."
        )
    return classifier


def _with_parameters(classifier: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    """A copy of a linear layer with other parameters."""
    changed = copy.deepcopy(classifier)
    with torch.no_grad():
        changed.weight.copy_(weight)
        changed.bias.copy_(bias)
    return changed


def retrained(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """cRT: new weights, trained with class-balanced batches; a candidate per epoch."""
    yield from _trained(config, material, material.fresh, lambda module: copy.deepcopy(module))


def over_smoothed(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """LOS: the run's weights, trained on with smoothed labels; a candidate per epoch."""
    module = copy.deepcopy(material.model.classifier)
    yield from _trained(config, material, module, lambda module: copy.deepcopy(module))


def scaled(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """LWS: one scale per class on the logits, trained likewise; a candidate per epoch."""
    linear = _linear(material, "lws")

    def fold(module: ScaledLogits) -> nn.Linear:
        scales = module.scales.detach()  # [K]
        return _with_parameters(linear, linear.weight * scales[:, None], linear.bias * scales)

    module = ScaledLogits(linear, material.num_classes)
    for candidate in _trained(config, material, module, fold):
        candidate.detail["scales"] = module.scales.detach().tolist()
        yield candidate


def _trained(
    config: Stage2Config,
    material: Material,
    module: Any,
    fold: Callable[[Any], nn.Module],
) -> Iterator[Candidate]:
    for epoch in train_classifier(config, module, material.batches):
        yield Candidate(
            statistics=_running_statistics(material.model) if config.backbone == "train" else {},
            classifier=fold(module),
            train={"loss": epoch.loss, "accuracy": epoch.accuracy},
            learning_rate=epoch.learning_rate,
            step=epoch.step,
            images=epoch.images,
            seconds=epoch.seconds,
        )


def _running_statistics(model: WhitenedClassifier) -> dict[str, Tensor]:
    """Copies of the buffers of backbone and whitening layer, by their names."""
    parameters = {name for name, _ in model.named_parameters()}
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name not in parameters and not name.startswith("classifier.")
    }


def tau_normalised(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """tau-norm: a candidate per tau."""
    linear = _linear(material, "tau-norm")
    bias = linear.bias if config.bias == "keep" else torch.zeros_like(linear.bias)
    for tau in config.taus:
        started = time.perf_counter()
        weight = tau_normalise(linear.weight.detach(), tau)
        classifier = _with_parameters(linear, weight, bias)
        yield _untrained(material, classifier, started, {"tau": tau})


def logit_adjusted(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """Post-hoc logit adjustment: a candidate per tau."""
    linear = _linear(material, "logit-adjustment")
    counts = material.class_counts.to(linear.weight.device)
    if bool((counts == 0).any()):
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ConfigError(
            f"logit-adjustment: expected a training image of every class, found none of the "
            f"classes {missing}."
        )
    weight, bias = linear.weight.detach(), linear.bias.detach()
    for tau in config.taus:
        started = time.perf_counter()
        adjusted = adjust_logits(weight, bias, counts / counts.sum(), tau, config.adjustment)
        classifier = _with_parameters(linear, *adjusted)
        yield _untrained(material, classifier, started, {"tau": tau})


def nearest_class_mean(config: Stage2Config, material: Material) -> Iterator[Candidate]:
    """NCM: one candidate."""
    linear = _linear(material, "ncm")
    started = time.perf_counter()
    features, classifier = material.features(), linear
    if config.distance == "cl2n":
        centre = features.double().mean(0)  # [D]
        features = centred_directions(features, centre)
        classifier = NearestMean(linear.in_features, linear.out_features).to(linear.weight)
        classifier.centre.copy_(centre)
    means = class_means(features, material.labels, material.num_classes)
    distance = "cosine" if config.distance == "cosine" else "euclidean"
    classifier = _with_parameters(classifier, *nearest_mean(means, distance))
    yield _untrained(material, classifier, started, {})


def _untrained(
    material: Material, classifier: nn.Module, started: float, detail: dict[str, Any]
) -> Candidate:
    """A candidate with its figures on the training images, without augmentation."""
    with torch.no_grad():
        logits = classifier(material.features())  # [N', K]
        loss = nn.functional.cross_entropy(logits, material.labels).item()
        accuracy = (logits.argmax(1) == material.labels).double().mean().item()
    return Candidate(
        classifier,
        {"loss": loss, "accuracy": accuracy},
        images=len(material.labels),
        seconds=time.perf_counter() - started,
        detail=detail,
    )


METHODS: dict[str, Callable[[Stage2Config, Material], Iterator[Candidate]]] = {
    "crt": retrained,
    "lws": scaled,
    "los": over_smoothed,
    "tau-norm": tau_normalised,
    "logit-adjustment": logit_adjusted,
    "ncm": nearest_class_mean,
}
