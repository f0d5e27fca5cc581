"""Running statistics made anew, as by ``torch.optim.swa_utils.update_bn``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .modules import ChannelWhitening


@torch.no_grad()
def update_statistics(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str | int | None = None
) -> None:
    """Set the running statistics of a model's layers to their average over the batches of a loader.

    For weights that no batch was normalised with: an average of models
    (``torch.optim.swa_utils.AveragedModel``), or parameters that were loaded from elsewhere.
    ``torch.optim.swa_utils.update_bn`` passes :class:`ChannelWhitening` over; this does both kinds
    of layers in one pass, because what one sees depends on the others. One forward in training
    mode for every batch; modes and momenta are as before afterwards, also after an exception.

    Args:
        model: a model with :class:`ChannelWhitening` or ``nn.BatchNorm`` layers.
        loader: batches, each a tensor, or a tuple or list whose first element is the input.
        device: where the inputs are moved to; None leaves them where they are.

    Raises:
        ValueError: no layer of the model has running statistics, or the loader has no batch.

    Example:
        >>> import torch, fastwhiten
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 8), fastwhiten.ChannelWhitening(8))
        >>> average = torch.optim.swa_utils.AveragedModel(model)
        >>> batches = [(torch.randn(64, 10), torch.zeros(64)) for _ in range(3)]
        >>> fastwhiten.update_statistics(average, batches)
        >>> average.module[1].num_batches_tracked.item()
        3
    """
    layers = [
        m
        for m in model.modules()
        if isinstance(m, (ChannelWhitening, _BatchNorm)) and m.track_running_stats
    ]
    if not layers:
        raise ValueError(
            "update_statistics: expected a model with ChannelWhitening or BatchNorm layers that "
            f"track running statistics, got {type(model).__name__} without one"
        )
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ValueError("update_statistics: expected a loader of at least one batch, got none")
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        batch: Any = first
        while batch is not None:
            x = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(x if device is None else x.to(device))
            batch = next(batches, None)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            if isinstance(layer, ChannelWhitening):
                layer._first_passes.forget()
        for module, mode in modes:
            module.training = mode
