"""The layer between the pooled features and the classifier, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.config import WHITENING_OPTIONS, WhiteningName, WhiteningOptions
from training.models import peers


def _batchnorm(num_features: int, eps: float, momentum: float) -> nn.Module:
    # No scale and shift, as in the whitening layers: the linear classifier follows.
    return nn.BatchNorm1d(num_features, eps=eps, momentum=momentum, affine=False)


def _fused(num_features: int, **options: Any) -> nn.Module:
    from fastwhiten import ChannelWhitening

    return ChannelWhitening(num_features, **options)


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "none": nn.Identity,
    "batchnorm": _batchnorm,
    "eager": peers.EagerWhitening,
    "cholesky": peers.CholeskyWhitening,
    "iternorm": peers.IterNorm,
    "fused": _fused,
}


def build_whitening(name: WhiteningName, num_features: int, options: WhiteningOptions) -> nn.Module:
    """Return the layer, given the options that it has (`config.validate` refuses the others)."""
    used = {option: getattr(options, option) for option in WHITENING_OPTIONS[name]}
    return _LAYERS[name](num_features, **used)


def apply_whitening(
    layer: nn.Module,
    features: Tensor,
    sample_weight: Tensor | None = None,
    update_statistics: bool = True,
) -> Tensor:
    """Whiten features in float32, whatever autocast says.

    Args:
        layer: One of `build_whitening`.
        features: [B, D].
        sample_weight: Weights of the rows in the batch statistics, [B]; null is equal ones. Only
            for a layer that takes them (fused).
        update_statistics: See `keep_statistics`.

    Returns:
        The whitened features, [B, D], in the features' dtype.
    """
    if isinstance(layer, nn.Identity):
        return features
    extra = () if sample_weight is None else (sample_weight,)
    with torch.autocast(features.device.type, enabled=False):
        x = features.float() if features.element_size() < 4 else features
        if update_statistics:
            y = layer(x, *extra)
        else:
            y = keep_statistics(layer, x, *extra)
        return y.to(features.dtype)


def keep_statistics(module: nn.Module, *inputs: Tensor) -> Any:
    """Call a module in training mode with batch statistics, leaving its running ones alone.

    Normalisation layers of torch and whitening layers of `fastwhiten` track nothing while
    ``track_running_stats`` is False, and use batch statistics as before in training mode. Only this
    flag changes during the call: no buffer is written, copied or read back, so it costs nothing,
    synchronises nothing, and a non-finite batch cannot leave a trace. In evaluation mode the call
    is an ordinary one.
    """
    tracking: list[Any] = [
        layer
        for layer in module.modules()
        if layer.training and getattr(layer, "track_running_stats", False)
    ]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        return module(*inputs)
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def class_balanced_weights(labels: Tensor, class_counts: Tensor) -> Tensor:
    """Return weights of images that are the inverse of their class's share.

    Their scale is such that the mean over the images which the counts count is 1. It depends on the
    counts alone, so that the processes of a distributed run weight alike.

    Args:
        labels: Classes of the images, int64 [B].
        class_counts: Images of each class, in the batch (of all processes) or in the data set, [K],
            > 0 for every class that occurs; on the labels' device.

    Returns:
        float32 [B].

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> weights = class_balanced_weights(labels, torch.bincount(labels))
        >>> [round(w, 4) for w in weights.tolist()]  # either class has weight 2
        [0.6667, 0.6667, 0.6667, 2.0]
    """
    counts = class_counts.float()  # [K]
    share = counts.sum() / (counts > 0).sum()  # []
    return (share / counts)[labels]
