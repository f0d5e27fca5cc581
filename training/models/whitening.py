"""The layer between the pooled features and the classifier, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from training.config import WHITENING_OPTIONS, WhiteningName, WhiteningOptions


def _batchnorm(num_features: int, eps: float, momentum: float) -> nn.Module:
    # No scale and shift, as in the whitening layers: the linear classifier follows.
    return nn.BatchNorm1d(num_features, eps=eps, momentum=momentum, affine=False)


def _eager(num_features: int, **options: Any) -> nn.Module:
    from fastwhiten.peers import EagerWhitening

    return EagerWhitening(num_features, **options)


def _fused(num_features: int, **options: Any) -> nn.Module:
    from fastwhiten import ChannelWhitening

    return ChannelWhitening(num_features, **options)


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "none": nn.Identity,
    "batchnorm": _batchnorm,
    "eager": _eager,
    "fused": _fused,
}


def build_whitening(name: WhiteningName, num_features: int, options: WhiteningOptions) -> nn.Module:
    """Return the layer, given the options that it has (`config.validate` refuses the others)."""
    used = {option: getattr(options, option) for option in WHITENING_OPTIONS[name]}
    return _LAYERS[name](num_features, **used)
