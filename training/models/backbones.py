"""Backbones by their name on the command line. To add one: a line in ``_BACKBONES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.config.model import ModelConfig, split_name
from training.models.by_name import build_named
from training.models.resnet import SmallResNet
from training.models.resnet_cifar import CifarResNet
from training.models.resnet_imagenet import ImageNetResNet

_BACKBONES: dict[str, Callable[[int, ModelConfig], nn.Module]] = {
    "small-resnet": lambda channels, model: SmallResNet(channels, model.width, model.blocks),
    "resnet-32": lambda channels, _: CifarResNet(channels),
    "resnet-10": lambda channels, _: ImageNetResNet((1, 1, 1, 1), channels),
    "resnet-50": lambda channels, _: ImageNetResNet((3, 4, 6, 3), channels, bottleneck=True),
    "resnext-50": lambda channels, _: ImageNetResNet(
        (3, 4, 6, 3), channels, bottleneck=True, groups=32, width_per_group=4
    ),
}


def build_backbone(model: ModelConfig, in_channels: int) -> Any:
    """Return the module: images [B, in_channels, H, W] -> features [B, its feature_dim].

    Raises:
        ConfigError: If a model of another package is not there or does not fit.
    """
    source, name = split_name(model.name)
    if source is None:
        return _BACKBONES[name](in_channels, model)
    return build_named(source, name, in_channels)


def feature_dim(model: ModelConfig) -> int:
    """Return the dimension D of the features, without data and without allocating weights.

    Raises:
        ConfigError: If a model of another package is not there.
    """
    with torch.device("meta"):  # shapes only: no memory, no random number
        return int(build_backbone(model, 3).feature_dim)
