"""Pictures of accuracy: over the classes, and over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.report.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    class_order,
    legend_above,
    new_figure,
    plain,
    save_figure,
)


def plot_accuracy_over_frequency(path: Path, summary: Mapping[str, Any]) -> None:
    """Draw test accuracy per class, last and best, above the training images of the class."""
    classes = class_order(summary)
    figure = new_figure(7.0, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    few_classes = len(classes.names) <= 30
    styles = {"last": ("o-", BLUE), "best": ("s--", ORANGE)}
    for kind, (style, colour) in styles.items():
        result = summary[kind]
        if result["test"] is None:
            continue
        accuracy = 100 * np.asarray(result["test"]["per_class"], dtype=float)[classes.order]
        label = (
            f"{kind} (epoch {result['epoch']}), "
            f"balanced {100 * result['test']['balanced_accuracy']:.1f} %"
        )
        size = 6 if few_classes else 2
        top.plot(
            classes.places, accuracy, style, color=colour, label=label, markersize=size, alpha=0.9
        )
    top.set_ylabel("test accuracy (%)")
    top.set_ylim(-3, 103)
    top.grid(axis="y", alpha=0.3)
    top.set_title(
        plain(
            f"{summary['dataset']}, imbalance factor {summary['imbalance_factor']:g}: "
            f"whitening {summary['whitening']}, loss {summary['loss']}"
        )
    )
    legend_above(top, ncols=2)
    bars = bottom.bar(classes.places, classes.counts, color=classes.colours)
    classes.label_counts(bottom, bars)
    bottom.set_ylabel("training images (log)")
    classes.label_axis(bottom)
    classes.legend(bottom)
    save_figure(figure, path)


def plot_curves(path: Path, records: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    """Draw loss, accuracy and rate over the epochs, and mark the epoch that was chosen as best.

    Args:
        path: Where the picture goes.
        records: The lines of metrics.jsonl; a split that was not evaluated in an epoch is null.
        best_epoch: The chosen one.
    """
    epochs = [record["epoch"] for record in records]
    figure = new_figure(7.0, 10.0)  # one above the other: side by side a page makes them small
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    losses = {
        "training (its own loss)": (_series(records, "train", "loss"), GREY),
        "validation (cross-entropy)": (_series(records, "validation", "loss"), BLUE),
        "test (cross-entropy)": (_series(records, "test", "loss"), ORANGE),
    }
    top.set_ylabel("loss (nats)")
    accuracies = {
        "training batches (over images)": (100 * _series(records, "train", "accuracy"), GREY),
        "validation": (100 * _series(records, "validation", "balanced_accuracy"), BLUE),
        "test": (100 * _series(records, "test", "balanced_accuracy"), ORANGE),
        "test, few-shot classes": (100 * _series(records, "test", "few"), GREEN),
    }
    middle.set_ylabel("accuracy, mean over classes (%)")
    rates = {"learning rate": (np.asarray([r["learning_rate"] for r in records]), GREY)}
    bottom.set_ylabel("learning rate of the epoch's last step")
    for axis, lines in ((top, losses), (middle, accuracies), (bottom, rates)):
        for label, (values, colour) in lines.items():
            shown = ~np.isnan(values)  # an epoch without evaluation does not break the line
            if shown.any():
                axis.plot(np.asarray(epochs)[shown], values[shown], color=colour, label=label)
        axis.axvline(best_epoch, color="black", linestyle=":", linewidth=1)
        axis.grid(alpha=0.3)
        legend_above(axis, ncols=2)
    bottom.set_xlabel("epoch (dotted: chosen as best)")
    top.set_ylim(bottom=0)
    middle.set_ylim(0, 102)
    bottom.set_ylim(bottom=0)
    save_figure(figure, path)


def _series(records: Sequence[Mapping[str, Any]], split: str, name: str) -> NDArray[np.float64]:
    """One figure over the epochs; NaN where there is none."""
    return np.asarray([(r[split] or {}).get(name) for r in records], dtype=float)
