"""The network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from training.config.checks import check, check_unused_options
from training.errors import ConfigError

MODEL_NAMES = ("small-resnet", "resnet-32", "resnet-10", "resnet-50", "resnext-50")
MODEL_SOURCES = ("timm", "torchvision")


@dataclass
class ModelConfig:
    """The network before the whitening layer and the classifier.

    Attributes:
        name: small-resnet (images of a few pixels), resnet-32 (CIFAR, 64 features), resnet-10 (512
            features), resnet-50 or resnext-50 (ImageNet-size images, 2048 features), these three by
            torchvision, or a model of another package, its classifier taken off: timm:resnet18,
            torchvision:efficientnet_b0.
        width: Channels of the first stage, doubled in each of the next two; the feature dimension
            is 4 * width; >= 1. (small-resnet)
        blocks: Residual blocks per stage; >= 1. (small-resnet)
    """

    name: str = "small-resnet"
    width: int = 16
    blocks: int = 1


def split_name(name: str) -> tuple[str | None, str]:
    """Split "timm:resnet18" into its package and its name; our own models have no package.

    Example:
        >>> split_name("timm:resnet18"), split_name("resnet-32")
        (('timm', 'resnet18'), (None, 'resnet-32'))
    """
    source, colon, model = name.partition(":")
    return (source, model) if colon else (None, name)


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
    table = {"small-resnet": ("width", "blocks")}
    check_unused_options("model.", model, table, "--model.name ", model.name)
