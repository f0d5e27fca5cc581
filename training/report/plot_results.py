"""A picture of a grid: every arm's accuracy, and beside it how its features and batches are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.spread import Spread
from training.report.plot_style import BLUE, GREY, new_figure, plain, save_figure


def plot_grid(
    path: Path, columns: Mapping[str, Sequence[Spread]], arms: Sequence[str], confidence: float
) -> None:
    """Draw a column of means with their intervals for every figure, a line for every arm.

    Args:
        path: PNG.
        columns: From a figure's name to its spread over each arm's runs.
        arms: Their names, from the top.
        confidence: Of the intervals, for instance 0.95.
    """
    places = np.arange(len(arms))
    figure = new_figure(3.0 + 1.9 * len(columns), 1.2 + 0.22 * len(arms))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (name, spreads) in zip(axes, columns.items(), strict=True):
        means = [s.mean for s in spreads]
        halves = [np.nan_to_num(s.half_width(confidence)) for s in spreads]
        axis.errorbar(means, places, xerr=halves, fmt="o", color=BLUE, ecolor=GREY, capsize=2)
        axis.set_title(name, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(places, [plain(arm) for arm in arms], fontsize=8)
    axes[0].invert_yaxis()
    save_figure(figure, path, vector=False)
