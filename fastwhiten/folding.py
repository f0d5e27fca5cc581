"""Whitening in evaluation is an affine map, which a linear layer behind it can swallow.

With ``y = x A + s`` (A is D x D) and ``z = y W^T + b``: ``z = x (W A^T)^T + (W s + b)``.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from .modules import ChannelWhitening

Linear = TypeVar("Linear", nn.Linear, nn.Conv2d)


def affine_map(layer: nn.Module, size: int, positions: int = 0) -> tuple[Tensor, Tensor]:
    """Find A and s of a layer that is affine in evaluation, whatever its kind.

    The layer is copied, taken to float64, and asked for its value at 0 and at the D unit vectors;
    at random rows it must then agree.

    Args:
        layer: maps ``[N, D]`` to ``[N, D]``.
        size: D.
        positions: how many dimensions of size 1 the layer wants behind the channels.

    Returns:
        A ``[D, D]`` and s ``[D]``, float64, on the CPU.

    Raises:
        ValueError: the layer is not affine.

    Example:
        >>> import torch
        >>> from fastwhiten.folding import affine_map
        >>> layer = torch.nn.BatchNorm1d(2, eps=0.0, affine=False)
        >>> _ = layer.running_mean.fill_(1.0), layer.running_var.fill_(4.0)
        >>> matrix, shift = affine_map(layer, 2)
        >>> matrix.tolist(), shift.tolist()
        ([[0.5, 0.0], [0.0, 0.5]], [-0.5, -0.5])
    """
    layer = copy.deepcopy(layer).cpu().double().eval()

    def value(rows: Tensor) -> Tensor:  # [N, D] to [N, D]
        y: Tensor = layer(rows.reshape(*rows.shape, *[1] * positions))
        return y.reshape(rows.shape)

    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(16, size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shift = value(torch.zeros(2, size, dtype=torch.float64))[0]  # [D]
        matrix = value(torch.eye(size, dtype=torch.float64)) - shift  # [D, D]
        expected = value(probe)
        error = (probe @ matrix + shift - expected).abs().max()
    scale = max(1.0, shift.abs().max().item(), expected.abs().max().item())
    if not error <= 1e-9 * scale:
        raise ValueError(
            "affine_map: expected a layer that is affine in evaluation mode, got "
            f"{type(layer).__name__}, which is {error.item():.1e} off at random rows; "
            "a layer with batch statistics in evaluation (track_running_stats=False) is none"
        )
    return matrix, shift


def fold_into_linear(layer: nn.Module, linear: Linear) -> Linear:
    """Return one linear layer that computes what ``linear(layer(x))`` does in evaluation.

    Neither of the two is changed. The products are formed in float64 and rounded once, so for
    float32 layers the result is off by the rounding of weights that are up to ``1 / sqrt(eps)``
    times as large as before.

    Args:
        layer: :class:`ChannelWhitening`, or any other layer that is affine in evaluation and acts
            on the D channels alike everywhere, such as ``nn.BatchNorm1d``.
        linear: an ``nn.Linear``, or a 1 x 1 ``nn.Conv2d`` without padding and groups (behind
            ``channel_dim=1``).

    Returns:
        A new ``nn.Linear`` or ``nn.Conv2d`` with a bias, of the dtype, on the device and in the
        mode of ``linear``.

    Raises:
        TypeError: ``linear`` is of another type; a subclass may compute something else.
        ValueError: ``layer`` is not affine, ``linear`` has hooks, which a new one would not, or is
            another convolution.

    Example:
        >>> import torch, fastwhiten
        >>> layer, linear = fastwhiten.ChannelWhitening(8), torch.nn.Linear(8, 3)
        >>> x = torch.randn(64, 8)
        >>> _ = layer(x), layer.eval()
        >>> folded = fastwhiten.fold_into_linear(layer, linear)
        >>> torch.allclose(folded(x), linear(layer(x)), atol=1e-5)
        True
    """
    caller = "fold_into_linear"
    if type(linear) not in (nn.Linear, nn.Conv2d):
        raise TypeError(
            f"{caller}: expected linear to be an nn.Linear or an nn.Conv2d itself, got "
            f"{type(linear).__name__}; a subclass may compute something else (first undo() what "
            "whiten_classifier_input has done)"
        )
    if linear._forward_pre_hooks or linear._forward_hooks:
        raise ValueError(
            f"{caller}: expected linear without forward hooks, which a new layer would not have, "
            f"got {linear}; remove them first"
        )
    layer = copy.deepcopy(layer)
    if isinstance(linear, nn.Conv2d):
        pads = linear.padding not in ((0, 0), "valid", "same")
        if linear.kernel_size != (1, 1) or linear.groups != 1 or pads:
            raise ValueError(
                f"{caller}: expected a 1 x 1 convolution without padding and groups, got {linear}; "
                "what it pads is not whitened"
            )
        size, positions = linear.in_channels, 2
    else:
        size, positions = linear.in_features, 0
        if isinstance(layer, ChannelWhitening):
            layer.channel_dim = -1  # what a linear layer acts on
    matrix, shift = affine_map(layer, size, positions)
    weight = linear.weight.detach().cpu().double().flatten(1)  # [K, D]
    bias = weight @ shift
    if linear.bias is not None:
        bias = bias + linear.bias.detach().cpu().double()
    folded = copy.deepcopy(linear)
    with torch.no_grad():
        folded.weight.copy_((weight @ matrix.T).reshape(linear.weight.shape))
        folded.bias = nn.Parameter(bias.to(linear.weight), linear.weight.requires_grad)
    return folded
