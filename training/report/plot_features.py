"""Pictures of the features and of the classifier's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.report.plot_style import (
    BLUE,
    ORANGE,
    class_order,
    legend_above,
    new_figure,
    plain,
    save_figure,
)


def plot_feature_correlation(
    path: Path,
    correlations: Mapping[str, NDArray[np.float64]],
    means: Mapping[str, float],
    whitening: str,
    split: str = "test",
) -> None:
    """Draw the feature correlation matrices [D, D] before and after whitening, one colour scale.

    Args:
        path: Where the picture goes.
        correlations: Matrices "before" and "after"; NaN for channels that do not vary (grey).
        means: Mean |off-diagonal| of each, for the titles.
        whitening: Name of the layer, for the titles.
        split: Where the features come from, for the colour bar.
    """
    titles = {"before": "before whitening", "after": f"after whitening: {whitening}"}
    figure = new_figure(9.0, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    image: Any = None
    for axis, name in zip(axes, ("before", "after"), strict=True):
        axis.set_facecolor("#BBBBBB")
        image = axis.imshow(
            correlations[name], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        axis.set_title(f"{titles[name]}\nmean |off-diagonal r| = {means[name]:.3f}")
        axis.set_xlabel("feature channel")
    axes[0].set_ylabel("feature channel")
    figure.colorbar(image, ax=axes, label=f"Pearson correlation r ({split} split)", shrink=0.85)
    save_figure(figure, path)


def plot_singular_values(
    path: Path, values: Mapping[str, NDArray[np.float64]], whitening: str, split: str
) -> None:
    """Draw the singular values of the centred features over sqrt(N), before and after whitening.

    Args:
        path: Where the picture goes.
        values: "before" and "after", descending, >= 0; zeros cannot be drawn and are left out.
        whitening: Name of the layer, for the legend.
        split: Where the features come from, for the axis.
    """
    figure = new_figure(6.5, 4.2)
    axis = figure.subplots()
    styles = {"before": ("o-", BLUE, "before whitening"), "after": ("s--", ORANGE, "after: ")}
    largest = 0.0
    for name, (style, colour, text) in styles.items():
        singular = np.asarray(values[name], dtype=float)
        rank = np.arange(1, len(singular) + 1)
        label = text + (plain(whitening) if name == "after" else "")
        shown = singular > 1e-12 * singular.max(initial=0.0)  # below is rounding
        axis.plot(rank[shown], singular[shown], style, color=colour, label=label, markersize=3)
        largest = max(largest, singular.max(initial=0.0))
    axis.set_yscale("log")
    axis.set_ylim(top=3 * largest if largest > 0 else 1.0)
    axis.set_xlabel("index of the singular value, largest first")
    axis.set_ylabel("singular value of the centred features / sqrt(N) (log)")
    axis.set_title(f"spectrum of the features, {split} split")
    axis.grid(alpha=0.3, which="both", axis="y")
    legend_above(axis, ncols=2)
    save_figure(figure, path)


def plot_weight_norms(
    path: Path, norms: NDArray[np.float64], summary: Mapping[str, Any], checkpoint: str
) -> None:
    """Draw the norm of each class's weight vector, [K], over the class's frequency."""
    classes = class_order(summary)
    figure = new_figure(7.0, 3.8)
    axis = figure.subplots()
    axis.bar(classes.places, np.asarray(norms)[classes.order], color=classes.colours)
    axis.axhline(float(np.mean(norms)), color="black", linestyle=":", linewidth=1)
    axis.set_ylabel("norm of the class's weight vector")
    axis.set_title(f"classifier of the {checkpoint} checkpoint (dotted: mean)")
    axis.set_ylim(0, 1.25 * float(np.max(norms)) or 1.0)
    classes.label_axis(axis)
    classes.legend(axis)
    save_figure(figure, path)
