"""Backbones by their name on the command line. To add one: a line in ``_BACKBONES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from training.config.model import ModelConfig, split_name
from training.errors import ConfigError
from training.models.resnet import CifarResNet, SmallResNet

_BACKBONES: dict[str, Callable[[int, ModelConfig], nn.Module]] = {
    "small-resnet": lambda channels, model: SmallResNet(
        channels, model.width, model.blocks, model.features
    ),
    "resnet-32": lambda channels, _: CifarResNet(channels),
    # The small network of the ImageNet-LT protocol (Liu et al., CVPR 2019).
    "resnet-10": lambda channels, _: _imagenet_resnet("BasicBlock", [1, 1, 1, 1], channels),
    "resnet-50": lambda channels, _: _imagenet_resnet("Bottleneck", [3, 4, 6, 3], channels),
    "resnext-50": lambda channels, _: _imagenet_resnet(  # 32 x 4d
        "Bottleneck", [3, 4, 6, 3], channels, groups=32, width_per_group=4
    ),
}

_FEATURE_DIMS = {"resnet-10": 512, "resnet-50": 2048, "resnext-50": 2048}
"""D of torchvision's, so that a configuration is checked without it."""


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
    if model.name in _FEATURE_DIMS:
        return _FEATURE_DIMS[model.name]
    with torch.device("meta"):  # shapes only: no memory, no random number
        return int(build_backbone(model, 3).feature_dim)


class NamedBackbone(nn.Module):
    """A model of another package without its classifier.

    Args:
        model: Maps images [B, C, H, W] to features [B, feature_dim].
        feature_dim: D.
    """

    def __init__(self, model: nn.Module, feature_dim: int) -> None:
        """Wrap the model."""
        super().__init__()
        self.model = model
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> features [B, feature_dim]."""
        return self.model(images)


def _imagenet_resnet(block: str, depths: list[int], in_channels: int, **options: int) -> Any:
    resnet = _import("torchvision.models.resnet", "torchvision")
    model: Any = resnet.ResNet(getattr(resnet, block), depths, **options)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.feature_dim = _remove_classifier(model, "ResNet")
    return model


def build_named(source: str, name: str, in_channels: int) -> NamedBackbone:
    """Return a model of timm or torchvision without its classifier.

    Raises:
        ConfigError: If the package cannot be imported, has no such model, or the model does not
            take images of ``in_channels`` channels.
    """
    return {"timm": _from_timm, "torchvision": _from_torchvision}[source](name, in_channels)


def _from_timm(name: str, in_channels: int) -> NamedBackbone:
    timm = _import("timm", "timm")
    if not timm.is_model(name):
        raise ConfigError(
            f"model.name: expected a model of timm {timm.__version__}, got {name!r}; "
            f"timm.list_models('*{name[:6]}*') lists {', '.join(_close_in_timm(timm, name))}."
        )
    model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels)
    # Some models have a layer before the classifier; then the features are head_hidden_size wide.
    return NamedBackbone(model, int(getattr(model, "head_hidden_size", 0) or model.num_features))


def _close_in_timm(timm: ModuleType, name: str) -> list[str]:
    return list(timm.list_models(f"*{name[:6]}*"))[:5] or ["none"]


def _from_torchvision(name: str, in_channels: int) -> NamedBackbone:
    models = _import("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise ConfigError(
            f"model.name: expected one of torchvision.models.list_models(), got {name!r}."
        )
    if in_channels != 3:
        raise ConfigError(
            f"model.name: expected images of 3 channels, which torchvision:{name} takes, got "
            f"{in_channels}; use a timm model (in_chans) or small-resnet, or other data."
        )
    model = models.get_model(name, weights=None)
    return NamedBackbone(model, _remove_classifier(model, name))


def _remove_classifier(model: nn.Module, name: str) -> int:
    """Replace the last linear layer of a torchvision model by the identity; return its inputs.

    torchvision calls the head fc, classifier, head or heads; in all of them the classifier is the
    last linear layer inside.
    """
    for attribute in ("fc", "classifier", "head", "heads"):
        head = getattr(model, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(model, attribute, nn.Identity())
            return head.in_features
        if isinstance(head, nn.Module):
            linear = [n for n, module in head.named_modules() if isinstance(module, nn.Linear)]
            if linear:
                *path, last = linear[-1].split(".")
                parent = head.get_submodule(".".join(path))
                features: int = getattr(parent, last).in_features
                setattr(parent, last, nn.Identity())
                return features
    raise ConfigError(
        f"model.name: expected a classification model that ends in a linear layer, torchvision:"
        f"{name} has none in fc, classifier, head or heads; use another model."
    )


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError on a mismatch
        raise ConfigError(
            f"model.name: expected {package} to be importable beside torch {torch.__version__}, "
            f"got {type(error).__name__}: {error}; run: pip install {package} (one built for that "
            "torch), or use a model of this package (small-resnet, resnet-32)."
        ) from error
