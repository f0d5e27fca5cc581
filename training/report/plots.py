"""Pictures of a run: colour-blind safe, PNG and SVG, drawn without a display."""

from training.report.plot_accuracy import plot_accuracy_over_frequency, plot_curves
from training.report.plot_features import (
    plot_feature_correlation,
    plot_singular_values,
    plot_weight_norms,
)
from training.report.plot_predictions import plot_confusion, plot_reliability

__all__ = [
    "plot_accuracy_over_frequency",
    "plot_confusion",
    "plot_curves",
    "plot_feature_correlation",
    "plot_reliability",
    "plot_singular_values",
    "plot_weight_norms",
]
