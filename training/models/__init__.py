"""Models: a backbone with the configured whitening before its linear classifier."""

from __future__ import annotations

from training.config import TrainConfig
from training.config.checks import check
from training.models.backbones import build_backbone, feature_dim
from training.models.classifier import WhitenedClassifier
from training.models.heads import (
    BatchNormLogits,
    CosineClassifier,
    NearestMean,
    build_classifier,
)
from training.models.resnet import SmallResNet
from training.models.whitening import build_whitening, class_balanced_weights
from training.reproducibility import seeded_initialisation

__all__ = [
    "BatchNormLogits",
    "CosineClassifier",
    "NearestMean",
    "SmallResNet",
    "WhitenedClassifier",
    "build_backbone",
    "build_model",
    "check_groups",
    "class_balanced_weights",
    "feature_dim",
]


def check_groups(config: TrainConfig) -> None:
    """Check that the whitening's groups divide the features, before anything is loaded.

    Raises:
        ConfigError: If they do not, or a model of another package is not there.
    """
    groups, dim = config.whitening_options.groups, feature_dim(config.model)
    allowed = f"a divisor of the feature dimension {dim}"
    check("whitening_options.groups", groups, groups >= 1 and dim % groups == 0, allowed)


def build_model(
    config: TrainConfig, in_channels: int, num_classes: int, seed: int
) -> WhitenedClassifier:
    """Return the configured model on the CPU, with weights that depend on ``seed`` alone.

    The whitening layers have no random parameters, so one seed gives the same weights with each.
    """
    with seeded_initialisation(seed):
        backbone = build_backbone(config.model, in_channels)
        whitening = build_whitening(
            config.whitening, backbone.feature_dim, config.whitening_options
        )
        return WhitenedClassifier(
            backbone,
            whitening,
            backbone.feature_dim,
            num_classes,
            build_classifier(config, backbone.feature_dim, num_classes),
            freeze_all_statistics=config.statistics_layers == "all",
        )
