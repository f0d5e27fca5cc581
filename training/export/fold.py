"""Whitening in evaluation mode is an affine map, so the linear classifier can swallow it.

With y = x A + s (A is D x D) and logits = y W^T + b: logits = x (W A^T)^T + (W s + b).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.models import WhitenedClassifier


class AffineMap(nn.Module):
    """y = x A + s, with numbers that do not change.

    Args:
        matrix: A, [D, D].
        shift: s, [D].
    """

    matrix: Tensor
    shift: Tensor

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        """Keep the numbers as buffers."""
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return torch.addmm(self.shift, x, self.matrix)


def affine_map(layer: nn.Module, size: int) -> tuple[Tensor, Tensor]:
    """Find A and s of a layer that is affine in evaluation mode, whatever its kind.

    The layer is copied, taken to float64, and asked for its value at 0 and at the D unit vectors;
    at random rows it must then agree.

    Args:
        layer: Maps [B, D] to [B, D].
        size: D.

    Returns:
        A [D, D] and s [D], float64, on the CPU.

    Raises:
        ConfigError: If the layer is not affine.

    Example:
        >>> layer = nn.BatchNorm1d(2, eps=0.0, affine=False)
        >>> _ = layer.running_mean.fill_(1.0), layer.running_var.fill_(4.0)
        >>> matrix, shift = affine_map(layer, 2)
        >>> matrix.tolist(), shift.tolist()
        ([[0.5, 0.0], [0.0, 0.5]], [-0.5, -0.5])
    """
    layer = copy.deepcopy(layer).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(16, size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shift = layer(torch.zeros(1, size, dtype=torch.float64))[0]  # [D]
        matrix = layer(torch.eye(size, dtype=torch.float64)) - shift  # [D, D]
        expected = layer(probe)
        error = (probe @ matrix + shift - expected).abs().max()
    scale = max(1.0, shift.abs().max().item(), expected.abs().max().item())
    if not error <= 1e-9 * scale:
        raise ConfigError(
            f"whitening: expected a layer that is affine in evaluation mode, got "
            f"{type(layer).__name__}, which is {error.item():.1e} off at random rows."
        )
    return matrix, shift


def freeze_whitening(model: WhitenedClassifier) -> WhitenedClassifier:
    """Return a copy, in evaluation mode, whose whitening is one matrix product and one sum."""
    frozen = copy.deepcopy(model).eval()
    if not isinstance(model.whitening, nn.Identity):
        matrix, shift = affine_map(model.whitening, _feature_dim(model))
        like = next(frozen.classifier.parameters())
        frozen.whitening = AffineMap(matrix.to(like), shift.to(like))
    return frozen


def fold_whitening(model: WhitenedClassifier) -> WhitenedClassifier:
    """Return a copy, in evaluation mode, without whitening and with the same logits.

    The products are formed in float64 and rounded once to the classifier's type.

    Raises:
        ConfigError: If the classifier is not linear (LDAM's normalises its input).
    """
    if type(model.classifier) is not nn.Linear:  # a subclass may compute something else
        raise ConfigError(
            "fold: expected a linear classifier to fold the whitening into, got "
            f"{type(model.classifier).__name__}; leave --fold out."
        )
    folded = copy.deepcopy(model).eval()
    matrix, shift = affine_map(model.whitening, _feature_dim(model))
    weight = model.classifier.weight.detach().cpu().double()  # [K, D]
    bias = weight @ shift
    if model.classifier.bias is not None:
        bias = bias + model.classifier.bias.detach().cpu().double()
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(model.classifier.weight)
    with torch.no_grad():
        linear.weight.copy_(weight @ matrix.T)
        linear.bias.copy_(bias)
    folded.classifier = linear.eval()
    folded.whitening = nn.Identity()
    return folded


def _feature_dim(model: WhitenedClassifier) -> int:
    return int(model.classifier.weight.shape[1])
