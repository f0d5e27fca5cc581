"""Pictures of a run: colour-blind safe (Okabe and Ito's palette), drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

_SHOT_COLOURS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00"}
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_DPI = 150


def plot_accuracy_over_frequency(path: Path, summary: Mapping[str, Any]) -> None:
    """Draw test accuracy per class, last and best, above the training images of the class."""
    counts = np.asarray(summary["class_counts"])  # [K]
    order = np.argsort(-counts, kind="stable")  # most frequent first
    names = [summary["class_names"][k] for k in order]
    groups = {k: name for name, members in summary["shot_groups"].items() for k in members}
    colours = [_SHOT_COLOURS[groups[k]] for k in order]
    x = np.arange(len(order))

    figure = _figure(7.0, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styles = {"last": ("o-", _BLUE), "best": ("s--", _ORANGE)}
    for kind, (style, colour) in styles.items():
        result = summary[kind]
        accuracy = 100 * np.asarray(result["test"]["per_class"], dtype=float)[order]
        label = (
            f"{kind} (epoch {result['epoch']}), "
            f"balanced {100 * result['test']['balanced_accuracy']:.1f} %"
        )
        top.plot(x, accuracy, style, color=colour, label=label, markersize=6, alpha=0.9)
    top.set_ylabel("test accuracy (%)")
    top.set_ylim(-3, 103)
    top.grid(axis="y", alpha=0.3)
    top.legend(loc="lower left", frameon=False)
    top.set_title(
        f"{summary['dataset']}, imbalance factor {summary['imbalance_factor']:g}: "
        f"whitening {summary['whitening']}, loss {summary['loss']}"
    )
    bars = bottom.bar(x, counts[order], color=colours)
    bottom.bar_label(bars, padding=2, fontsize=8)
    bottom.set_yscale("log")
    bottom.set_ylim(0.8, counts.max() * 3)
    bottom.set_ylabel("training images (log)")
    bottom.set_xlabel("class, most frequent first")
    bottom.set_xticks(x, names)
    thresholds = {"many": "many (> 100)", "medium": "medium (20 to 100)", "few": "few (< 20)"}
    handles = [Patch(color=_SHOT_COLOURS[name], label=text) for name, text in thresholds.items()]
    bottom.legend(handles=handles, loc="upper right", frameon=False)
    _save(figure, path)


def plot_feature_correlation(
    path: Path,
    correlations: Mapping[str, NDArray[np.float64]],
    means: Mapping[str, float],
    whitening: str,
) -> None:
    """Draw the feature correlation matrices [D, D] before and after whitening, one colour scale.

    Args:
        path: Where the picture goes.
        correlations: Matrices "before" and "after"; NaN for channels that do not vary (grey).
        means: Mean |off-diagonal| of each, for the titles.
        whitening: Name of the layer, for the titles.
    """
    titles = {"before": "before whitening", "after": f"after whitening: {whitening}"}
    figure = _figure(9.0, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    image = None
    for axis, name in zip(axes, ("before", "after"), strict=True):
        axis.set_facecolor("#BBBBBB")
        image = axis.imshow(
            correlations[name], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        axis.set_title(f"{titles[name]}\nmean |off-diagonal r| = {means[name]:.3f}")
        axis.set_xlabel("feature channel")
    axes[0].set_ylabel("feature channel")
    figure.colorbar(image, ax=axes, label="Pearson correlation r (test split)", shrink=0.85)
    _save(figure, path)


def plot_curves(path: Path, records: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    """Draw loss and accuracy over the epochs, and mark the epoch that was chosen as best."""
    epochs = [record["epoch"] for record in records]
    figure = _figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    losses = {
        "training (its own loss)": ([r["train"]["loss"] for r in records], _GREY),
        "validation (cross-entropy)": ([r["validation"]["loss"] for r in records], _BLUE),
        "test (cross-entropy)": ([r["test"]["loss"] for r in records], _ORANGE),
    }
    for label, (values, colour) in losses.items():
        left.plot(epochs, values, color=colour, label=label)
    left.set_ylabel("loss (nats)")
    left.set_ylim(bottom=0)
    accuracies = {
        "training batches (mean over images)": ([r["train"]["accuracy"] for r in records], _GREY),
        "validation": ([r["validation"]["balanced_accuracy"] for r in records], _BLUE),
        "test": ([r["test"]["balanced_accuracy"] for r in records], _ORANGE),
        "test, few-shot classes": ([r["test"]["few"] for r in records], _GREEN),
    }
    for label, (values, colour) in accuracies.items():
        right.plot(epochs, 100 * np.asarray(values, dtype=float), color=colour, label=label)
    right.set_ylabel("accuracy, mean over classes (%)")
    right.set_ylim(0, 102)
    for axis in (left, right):
        axis.axvline(best_epoch, color="black", linestyle=":", linewidth=1)
        axis.set_xlabel("epoch (dotted: chosen as best)")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that draws without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)
