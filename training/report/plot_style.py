"""What all pictures share: colours, files, the order of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

# The palette of Okabe and Ito, which people with any kind of colour blindness can tell apart.
SHOT_COLOURS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00"}
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

_SHOT_LABELS = {"many": "many (> 100)", "medium": "medium (20 to 100)", "few": "few (< 20)"}
_DPI = 150
_MOST_NAMES = 30
"""More class names than these do not fit below an axis."""
_LONGEST_NAME = 20
"""Longer class names leave no room for the picture; they are cut, the report has them whole."""
_MOST_DIGITS = 60
"""More digits than these do not fit side by side in a picture of seven inches."""


@dataclass(frozen=True)
class ClassOrder:
    """The classes of a run, most frequent first.

    Attributes:
        order: Class of each place, int64 [K].
        counts: Training images of each place, int64 [K].
        names: Class name of each place, as matplotlib draws it.
        colours: Colour of each place's group.
    """

    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: list[str]
    colours: list[str]

    @property
    def places(self) -> NDArray[np.int64]:
        """0 .. K - 1, where the classes lie on an axis."""
        return np.arange(len(self.order))

    def label_axis(self, axis: Axes) -> None:
        """Name the horizontal axis, and its classes if there is room."""
        axis.set_xlabel("class, most frequent first")
        if len(self.names) <= _MOST_NAMES:
            longest = max(len(name) for name in self.names)
            rotation = 0 if longest * len(self.names) <= 60 else 60
            ha = "center" if rotation == 0 else "right"
            axis.set_xticks(self.places, self.names, rotation=rotation, ha=ha)

    def legend(self, axis: Axes) -> None:
        """Explain the colours of the groups that have classes."""
        handles = [
            Patch(color=SHOT_COLOURS[name], label=text)
            for name, text in _SHOT_LABELS.items()
            if SHOT_COLOURS[name] in self.colours
        ]
        legend_above(axis, handles=handles, ncols=3)

    def label_counts(self, axis: Axes, bars: BarContainer) -> None:
        """Scale the axis of the counts by logarithms; write each above its bar if there is room.

        Where they would touch side by side they stand upright.
        """
        axis.set_yscale("log")
        upright = len(str(self.counts.max())) * len(self.counts) > _MOST_DIGITS
        share = 0.6 if upright else 0.85  # of the axis for the highest bar, the rest for its number
        axis.set_ylim(0.8, 0.8 * max(2.0, self.counts.max() / 0.8) ** (1 / share))
        if len(self.counts) <= _MOST_NAMES:
            axis.bar_label(bars, padding=2, fontsize=8, rotation=90 if upright else 0)


def legend_above(axis: Axes, ncols: int, **options: Any) -> None:
    """Put a legend between an axis and its title, where it covers nothing; none if it is empty."""
    if not options.get("handles", axis.get_legend_handles_labels()[0]):
        return
    options = {
        "bbox_to_anchor": (0, 1),
        "borderaxespad": 0.2,
        "fontsize": 8,
        "ncols": ncols,
        **options,
    }
    legend = axis.legend(loc="lower left", frameon=False, **options)
    rows = -(-len(legend.get_texts()) // ncols)
    if axis.get_title():
        axis.set_title(axis.get_title(), pad=10 + 12 * rows)


def class_order(summary: Mapping[str, Any]) -> ClassOrder:
    """Sort the classes of a run by their training images."""
    counts = np.asarray(summary["class_counts"])  # [K]
    order = np.argsort(-counts, kind="stable")
    groups = {k: name for name, members in summary["shot_groups"].items() for k in members}
    names = [plain(_cut(summary["class_names"][k])) for k in order]
    return ClassOrder(order, counts[order], names, [SHOT_COLOURS[groups[k]] for k in order])


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that draws without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, vector: bool = True) -> None:
    """Write a PNG to ``path``, and an SVG beside it; the same figure gives the same bytes."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)
    if not vector:
        return
    with matplotlib.rc_context({"svg.hashsalt": "fastwhiten"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def plain(text: object) -> str:
    """Return text that matplotlib draws as it is: a dollar sign starts a formula there."""
    return str(text).replace("$", r"\$")
