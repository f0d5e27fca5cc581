"""The network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from training.config.checks import check, check_unused, check_unused_options
from training.errors import ConfigError

MODEL_NAMES = ("small-resnet", "resnet-32", "resnet-10", "resnet-50", "resnext-50")
MODEL_SOURCES = ("timm", "torchvision")
ClassifierName = Literal["linear", "cosine", "batchnorm", "nearest-mean"]


@dataclass
class ModelConfig:
    """The network before the whitening layer, and the classifier after it.

    Attributes:
        name: small-resnet (images of a few pixels), resnet-32 (CIFAR, 64 features), resnet-10 (512
            features), resnet-50 or resnext-50 (ImageNet-size images, 2048 features), these three by
            torchvision, or a model of another package, its classifier taken off: timm:resnet18,
            torchvision:efficientnet_b0.
        width: Channels of the first stage, doubled in each of the next two; >= 1. (small-resnet)
        blocks: Residual blocks per stage; >= 1. (small-resnet)
        features: The feature dimension, >= 1: a 1 x 1 convolution with batch normalisation and ReLU
            before the pool makes so many; null is 4 * width, without it. (small-resnet)
        classifier: linear; cosine (``scale`` times the cosine of feature and class weight);
            batchnorm (of a linear layer's logits); null is cosine for LDAM, else linear.
            nearest-mean is what ``stage2 ncm`` makes, and no choice for a training.
        scale: Of the cosine classifier's logits; > 0. (classifier cosine; LDAM has
            ``loss_options.s``)
        classifier_init: How a linear classifier's weight is drawn (a cosine one's are directions):
            "torch", uniform of deviation 1 / sqrt(3 D), or "kaiming", normal of sqrt(2 / D), as in
            the code of LDAM.
    """

    name: str = "small-resnet"
    width: int = 16
    blocks: int = 1
    features: int | None = None
    classifier: ClassifierName | None = None
    scale: float = 30.0
    classifier_init: Literal["torch", "kaiming"] = "torch"


def split_name(name: str) -> tuple[str | None, str]:
    """Split "timm:resnet18" into its package and its name; our own models have no package.

    Example:
        >>> split_name("timm:resnet18"), split_name("resnet-32")
        (('timm', 'resnet18'), (None, 'resnet-32'))
    """
    source, colon, model = name.partition(":")
    return (source, model) if colon else (None, name)


def check_classifier(model: ModelConfig, loss: str) -> None:
    """Check that classifier and loss fit, and that no option is set which the classifier lacks."""
    name, ldam = model.classifier, loss in ("ldam", "ldam-drw")
    check("model.classifier", name, name != "nearest-mean", "that can be trained (stage2 makes it)")
    cosine = f"cosine or null with --loss {loss}, whose margins are in cosine"
    check("model.classifier", name, not ldam or name in (None, "cosine"), cosine)
    check("model.scale", model.scale, model.scale > 0, "> 0")
    if ldam or name != "cosine":
        where = f"with --loss {loss}" if ldam else "with another classifier than cosine"
        instead = "--loss_options.s" if ldam else "--model.classifier cosine"
        check_unused("model.scale", model.scale, 30.0, where, instead)


def check_model(model: ModelConfig) -> None:
    """Check name and ranges, and that no option is set which the model does not have."""
    source, name = split_name(model.name)
    if (source is None and name not in MODEL_NAMES) or (
        source is not None and (source not in MODEL_SOURCES or not name)
    ):
        close = difflib.get_close_matches(model.name, MODEL_NAMES, n=1)
        raise ConfigError(
            f"model.name: expected one of {', '.join(MODEL_NAMES)}, timm:NAME or torchvision:NAME, "
            f"got {model.name!r}." + (f" Did you mean '{close[0]}'?" if close else "")
        )
    check("model.width", model.width, model.width >= 1, ">= 1")
    check("model.blocks", model.blocks, model.blocks >= 1, ">= 1")
    features = model.features
    check("model.features", features, features is None or features >= 1, ">= 1, or null")
    table = {"small-resnet": ("width", "blocks", "features")}
    check_unused_options("model.", model, table, "--model.name ", model.name)
