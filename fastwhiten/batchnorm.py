"""Whitening in the places of batch normalisation, in a model that somebody else wrote."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .changes import Change, Changes
from .modules import ChannelWhitening
from .validation import check_groups

CALLER = "replace_batchnorm"

# These themselves: a subclass does more, such as the activation in timm's BatchNormAct2d.
REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Where = Callable[[str, nn.Module], bool] | str | Iterable[str] | None


def replace_batchnorm(
    model: nn.Module, where: Where = None, *, group_size: int = 64, **options: Any
) -> Changes:
    """Replace batch normalisation by :class:`ChannelWhitening`, in place.

    A layer takes over the number of features, ``eps``, ``momentum``, ``track_running_stats``,
    copies of scale and shift (with ``requires_grad``; a missing shift is a fixed 0), mode, device
    and dtype; one in the place of an ``nn.SyncBatchNorm`` its process group. Its running covariance
    begins as ``diag(running_var)``: in evaluation the model computes what it did (ZCA and Cholesky,
    without a fixed shrinkage; PCA permutes channels), and training decorrelates from there, as in
    Huang et al., "Decorrelated Batch Normalization", CVPR 2018.

    Args:
        model: contains ``nn.BatchNorm1d``, ``2d``, ``3d`` or ``nn.SyncBatchNorm``.
        where: which ones: a function of path and module, a glob or several (``"layer1.*"``; paths
            as in ``model.named_modules()``); None for all.
        group_size: >= 1. A layer of C channels takes the fewest groups of at most so many channels
            that divide C: it bounds the cost, and a batch needs more rows than that.
        options: of :class:`ChannelWhitening`, in place of what would be taken over. ``groups`` is
            the number for every layer, in place of ``group_size``.

    Returns:
        :class:`fastwhiten.changes.Changes` with ``layers`` by path; its ``undo()`` puts the modules
        of before back, with the numbers they had. Parameters are new: make the optimizer after.

    Raises:
        ValueError: ``where`` selects nothing, or a module that cannot be replaced; groups that do
            not divide its channels. The text names it, and nothing has been replaced.

    Example:
        >>> import torch, fastwhiten
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 96, 3), torch.nn.BatchNorm2d(96))
        >>> changes = fastwhiten.replace_batchnorm(model)
        >>> changes.layers["1"].groups
        2
        >>> changes.undo()
        >>> type(model[1])
        <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise ValueError(
            f"{CALLER}: expected group_size to be a positive integer, got {group_size!r}"
        )
    made: dict[int, ChannelWhitening] = {}
    changes = []
    for path, parent, name, old in _select(model, where):
        if id(old) not in made:
            made[id(old)] = _layer(path, old, group_size, options)
        changes.append(Change(path, made[id(old)], f"in place of {old}", parent, name, old))
    for _, layer, _, parent, name, *_ in changes:
        setattr(parent, name, layer)
    return Changes(changes)


def _select(model: nn.Module, where: Where) -> list[tuple[str, nn.Module, str, _BatchNorm]]:
    """Return path, parent, name in it, and module of what is to be replaced.

    Raises:
        ValueError: nothing is, or a pattern matches nothing.
    """
    found = model.named_modules(remove_duplicate=False)
    modules = {path: m for path, m in found if path and isinstance(m, _BatchNorm)}
    paths = list(modules)
    if not paths:
        raise ValueError(
            f"{CALLER}: expected a model that contains batch normalisation, got "
            f"{type(model).__name__} without; a single layer is replaced by ChannelWhitening(C)"
        )
    if where is None:
        chosen = set(paths)
    elif callable(where):
        chosen = {path for path, module in modules.items() if where(path, module)}
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        matches = {p: fnmatch.filter(paths, p) for p in patterns}
        chosen = set().union(*matches.values()) if all(matches.values()) else set()
    if not chosen:
        raise ValueError(
            f"{CALLER}: expected where to select among {', '.join(paths)}, got {where!r}, which "
            "(or one pattern of which) selects none; patterns are globs of whole paths"
        )
    split = {path: path.rpartition(".") for path in paths if path in chosen}
    return [(p, model.get_submodule(s[0]), s[2], modules[p]) for p, s in split.items()]


def _layer(
    path: str, old: _BatchNorm, group_size: int, options: dict[str, Any]
) -> ChannelWhitening:
    """Return what takes the place of ``old``.

    Raises:
        ValueError: it cannot be replaced, or groups do not divide its channels.
    """
    if type(old) not in REPLACED:
        raise ValueError(
            f"{CALLER}: expected {path} to be one of {[t.__name__ for t in REPLACED]} itself, got "
            f"{type(old).__name__}, which may do more than normalise; leave it out with where="
        )
    features = old.num_features
    groups = next(
        g for g in range(1, features + 1) if features % g == 0 and features <= g * group_size
    )
    groups = options.get("groups", groups)
    check_groups(f"{CALLER}, {path} (or leave groups out, for group_size)", groups, features)
    taken = {
        "groups": groups,
        "eps": old.eps,
        "momentum": old.momentum,
        "affine": old.affine,
        "track_running_stats": old.track_running_stats,
    }
    if isinstance(old, nn.SyncBatchNorm):
        taken["process_group"] = old.process_group or "world"
    tensor = next((t for t in (old.weight, old.running_mean) if t is not None), None)
    if tensor is not None:
        taken |= {"device": tensor.device, "dtype": tensor.dtype}
    layer = ChannelWhitening(features, **{**taken, **options}).train(old.training)
    _copy(old, layer)
    return layer


@torch.no_grad()
def _copy(old: _BatchNorm, layer: ChannelWhitening) -> None:
    """Copy parameters and statistics."""
    if layer.affine and old.affine:
        for parameter, value in ((layer.weight, old.weight), (layer.bias, old.bias)):
            if value is not None:
                parameter.copy_(value)
            parameter.requires_grad_(value is not None and value.requires_grad)
    if layer.running_mean is None or old.running_mean is None:
        return
    assert old.running_var is not None
    assert layer.num_batches_tracked is not None and old.num_batches_tracked is not None
    layer.running_mean.copy_(old.running_mean)
    layer.num_batches_tracked.copy_(old.num_batches_tracked)
    diagonal = old.running_var.double()
    if layer.running == "matrix":
        diagonal = (diagonal + layer.eps).rsqrt()
    layer._running_square().copy_(torch.diag_embed(diagonal.reshape(layer.groups, -1)))
