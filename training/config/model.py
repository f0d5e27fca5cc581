"""The network."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.checks import check


@dataclass
class ModelConfig:
    """A residual network for small images.

    Attributes:
        width: Channels of the first stage, doubled in each of the next two; the feature dimension
            is 4 * width; >= 1.
        blocks: Residual blocks per stage; >= 1.
    """

    width: int = 16
    blocks: int = 1


def check_model(model: ModelConfig) -> None:
    """Check the ranges."""
    check("model.width", model.width, model.width >= 1, ">= 1")
    check("model.blocks", model.blocks, model.blocks >= 1, ">= 1")
