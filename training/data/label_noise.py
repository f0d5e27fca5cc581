"""Wrong labels on purpose."""

from __future__ import annotations

import torch
from torch import Tensor


def add_label_noise(labels: Tensor, share: float, seed: int) -> Tensor:
    """Give a share of the images the label of another class, with the classes' frequencies.

    An image of class i gets the label j != i with probability share * n_j / (N - n_i): Wei et al.,
    "Robust Long-Tailed Learning under Label Noise", arXiv 2108.11569. A class that would lose its
    last image keeps one.

    Args:
        labels: int64 [N], in [0, K), of two classes or more.
        share: Probability that a label changes, in [0, 1).
        seed: Seed of the draw.

    Returns:
        int64 [N].

    Example:
        >>> labels = torch.arange(2).repeat(500)
        >>> noisy = add_label_noise(labels, 0.2, seed=0)
        >>> int((noisy != labels).sum())
        199
    """
    generator = torch.Generator().manual_seed(seed)
    found = labels.clone()
    changed = torch.rand(len(labels), generator=generator, dtype=torch.float64) < share
    counts = torch.bincount(labels).double()  # [K]
    for k in labels.unique().tolist():
        rows = (changed & (labels == k)).nonzero().flatten()
        weights = counts.index_fill(0, torch.tensor(k), 0.0)  # [K]
        if len(rows):
            drawn = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
            found[rows] = drawn
    for k in (counts.bool() & (torch.bincount(found, minlength=len(counts)) == 0)).nonzero():
        found[(labels == k).nonzero()[0]] = k
    return found
