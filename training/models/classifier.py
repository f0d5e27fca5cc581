"""Backbone, whitening layer and classifier, in that order."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from training.models.whitening import apply_whitening, keep_statistics


class WhitenedClassifier(nn.Module):
    """logits = classifier(whitening(backbone(images))).

    Args:
        backbone: Maps images to pooled features [B, D].
        whitening: Maps [B, D] to [B, D]; `torch.nn.Identity` for none.
        feature_dim: D.
        num_classes: K.
        classifier: Maps [B, D] to logits [B, K]; null is a new linear layer.
        freeze_all_statistics: Whether ``update_statistics=False`` holds for the batch normalisation
            of backbone and classifier too, and not for the whitening layer alone.
    """

    classifier: Any  # a module whose ``weight`` is [K, D]

    def __init__(
        self,
        backbone: nn.Module,
        whitening: nn.Module,
        feature_dim: int,
        num_classes: int,
        classifier: nn.Module | None = None,
        freeze_all_statistics: bool = False,
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.backbone = backbone
        self.whitening = whitening
        self.classifier = classifier or nn.Linear(feature_dim, num_classes)
        self.freeze_all_statistics = freeze_all_statistics

    def features(
        self,
        images: Tensor,
        sample_weight: Tensor | None = None,
        update_statistics: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> features before and after whitening, [B, D] each.

        The arguments are those of `forward`.
        """
        before = self._call(self.backbone, images, update_statistics)
        after = apply_whitening(self.whitening, before, sample_weight, update_statistics)
        return before, after

    def forward(
        self,
        images: Tensor,
        sample_weight: Tensor | None = None,
        update_statistics: bool = True,
    ) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K].

        Args:
            images: [B, C, H, W].
            sample_weight: Weights of the images in the whitening's batch statistics, [B], >= 0, not
                all 0; null is equal ones. Not used in evaluation mode.
            update_statistics: In training, False whitens with the batch's statistics as ever but
                leaves the running ones as they are. Not used in evaluation mode.
        """
        features = self.features(images, sample_weight, update_statistics)[1]
        return self._call(self.classifier, features, update_statistics)

    def _call(self, part: nn.Module, x: Tensor, update_statistics: bool) -> Any:
        if update_statistics or not self.freeze_all_statistics:
            return part(x)
        return keep_statistics(part, x)
