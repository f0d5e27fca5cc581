"""Pictures of a run: colour-blind safe, PNG and SVG, drawn without a display."""

from training.plots.accuracy import plot_accuracy_over_frequency, plot_curves
from training.plots.features import (
    plot_feature_correlation,
    plot_singular_values,
    plot_weight_norms,
)
from training.plots.predictions import plot_confusion, plot_reliability

__all__ = [
    "plot_accuracy_over_frequency",
    "plot_confusion",
    "plot_curves",
    "plot_feature_correlation",
    "plot_reliability",
    "plot_singular_values",
    "plot_weight_norms",
]
