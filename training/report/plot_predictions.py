"""Pictures of the predictions: which classes are taken for which, and how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Reliability
from training.report.plot_style import (
    BLUE,
    GREY,
    ORANGE,
    SHOT_COLOURS,
    class_order,
    legend_above,
    new_figure,
    save_figure,
)

_MOST_NUMBERS = 20
"""In larger confusion matrices the cells are too small for their numbers."""


def plot_confusion(
    path: Path,
    confusion: NDArray[np.int64],
    summary: Mapping[str, Any],
    checkpoint: str,
    split: str,
) -> None:
    """Draw the confusion matrix [K, K] (row = label), each row in per cent of its images."""
    classes = class_order(summary)
    counts = np.asarray(confusion, dtype=float)[np.ix_(classes.order, classes.order)]
    totals = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    figure = new_figure(7.0, 6.0)
    axis = figure.subplots()
    axis.set_facecolor("#BBBBBB")
    image = axis.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    size = len(share)
    if size <= _MOST_NUMBERS:
        for i, j in np.argwhere(share >= 0.5):
            colour = "black" if share[i, j] > 55 else "white"
            axis.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color=colour, size=8)
    for place in range(1, size):
        if classes.colours[place] != classes.colours[place - 1]:  # a new group begins
            for line in (axis.axhline, axis.axvline):
                line(place - 0.5, color=SHOT_COLOURS["few"], linewidth=1)
    classes.label_axis(axis)
    axis.set_xlabel("predicted class, most frequent first")
    axis.set_ylabel("true class, most frequent first")
    if size <= _MOST_NUMBERS:
        axis.set_yticks(classes.places, classes.names)
    axis.set_title(f"{checkpoint} checkpoint, {split} split (lines: many, medium, few)")
    figure.colorbar(image, ax=axis, label="images of the true class (%)", shrink=0.85)
    save_figure(figure, path)


def plot_reliability(path: Path, reliability: Reliability, checkpoint: str, split: str) -> None:
    """Draw accuracy over confidence in bins of equal width, and how many images each bin has."""
    bins = len(reliability.images)
    centres = (np.arange(bins) + 0.5) / bins
    images = reliability.images.numpy()
    used = images > 0
    accuracy = reliability.accuracy.numpy()[used]
    confidence = reliability.confidence.numpy()[used]
    figure = new_figure(5.5, 5.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 0.96 / bins
    top.bar(centres[used], accuracy, width, color=BLUE, label="accuracy")
    style = {"color": "none", "edgecolor": ORANGE, "hatch": "//", "label": "gap to confidence"}
    top.bar(centres[used], confidence - accuracy, width, accuracy, **style)
    top.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="calibrated")
    top.set_ylim(0, 1.02)
    top.set_ylabel("accuracy in the bin")
    top.set_title(
        f"{checkpoint} checkpoint, {split} split\n"
        f"expected calibration error {100 * reliability.error:.1f} %"
    )
    legend_above(top, ncols=3)
    bottom.bar(centres, images, width, color=GREY)
    bottom.set_yscale("symlog", linthresh=1)
    bottom.set_ylabel("images (log)")
    bottom.set_xlabel(f"confidence: largest softmax probability, {bins} bins")
    bottom.set_xlim(0, 1)
    save_figure(figure, path)
