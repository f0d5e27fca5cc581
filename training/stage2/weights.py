"""The linear classifiers of stage 2 as formulas, without training."""

from __future__ import annotations

import torch
from torch import Tensor

from training.errors import ConfigError


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """Divide each class's weights by their norm to the power tau (Kang et al., eq. 4).

    Training on a long tail gives frequent classes longer weight vectors; tau = 0 leaves them,
    tau = 1 makes all equally long, and above 1 the order turns round.

    Args:
        weight: [K, D].
        tau: >= 0.

    Returns:
        [K, D]; a row of zeros stays one.

    Example:
        >>> tau_normalise(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])
    """
    norm = weight.double().norm(dim=1, keepdim=True)  # [K, 1]
    norm = torch.where(norm > 0, norm, 1.0)
    return (weight.double() / norm**tau).to(weight.dtype)


def adjust_logits(
    weight: Tensor, bias: Tensor, prior: Tensor, tau: float, adjustment: str
) -> tuple[Tensor, Tensor]:
    """Adjust the logits of a linear classifier after its training.

    additive: f_k - tau log p_k (Menon et al., ICLR 2021, eq. 9). multiplicative: f_k p_k^-tau, as
    in the code of Hasegawa and Sato, ICLR 2024, whose logits come from a fixed simplex.

    Args:
        weight: [K, D].
        bias: [K].
        prior: Share of each class in the training images, [K], > 0.
        tau: >= 0; 0 changes nothing.
        adjustment: "additive" or "multiplicative".

    Returns:
        Weight [K, D] and bias [K] of the classifier with these logits.

    Example:
        >>> weight, bias = torch.ones(2, 1), torch.zeros(2)
        >>> adjust_logits(weight, bias, torch.tensor([0.75, 0.25]), 1.0, "additive")[1]
        tensor([0.2877, 1.3863])
    """
    logarithm = tau * prior.double().log()  # [K]
    if adjustment == "additive":
        return weight, (bias.double() - logarithm).to(bias.dtype)
    scale = (-logarithm).exp()  # [K]
    return (weight.double() * scale[:, None]).to(weight.dtype), (bias * scale).to(bias.dtype)


def centred_directions(features: Tensor, centre: Tensor) -> Tensor:
    """(z - c) / |z - c|, float64: features [N, D], centre [D] -> [N, D]."""
    return torch.nn.functional.normalize(features.double() - centre.double())


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of every class, summed in float64.

    Args:
        features: [N, D].
        labels: int64 [N], in [0, K).
        num_classes: K.

    Returns:
        float64 [K, D].

    Raises:
        ConfigError: If a class has no image.
    """
    counts = torch.bincount(labels, minlength=num_classes)  # [K]
    if (counts == 0).any():
        missing = torch.nonzero(counts == 0)[:, 0].tolist()
        raise ConfigError(
            f"ncm: expected a training image of every class, found none of the classes {missing}."
        )
    one_hot = torch.nn.functional.one_hot(labels, num_classes).double()  # [N, K]
    return one_hot.T @ features.double() / counts[:, None]


def nearest_mean(means: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """The linear classifier whose largest logit is at the nearest mean.

    Euclidean: |z - m|^2 = |z|^2 - 2 (m . z - |m|^2 / 2), and |z|^2 is the same for all classes.
    Cosine: cos(m, z) = (m / |m|) . z / |z|, and |z| is the same for all classes. So the decisions
    are those of the distance; cosine logits are |z| times the cosine.

    Args:
        means: Mean feature of every class, [K, D].
        distance: "euclidean" or "cosine".

    Returns:
        Weight [K, D] and bias [K].

    Example:
        >>> weight, bias = nearest_mean(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "euclidean")
        >>> bias
        tensor([-12.5000,  -0.5000])
    """
    if distance == "euclidean":
        return means, -0.5 * means.square().sum(1)
    return tau_normalise(means, 1.0), torch.zeros_like(means[:, 0])
