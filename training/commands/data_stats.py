"""What is in a data set: images per class, split and shot group, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.console import say
from training.data.base import LongTailedDataset, SplitName
from training.errors import ConfigError
from training.evaluation.metrics import FEW_BELOW, MANY_ABOVE, ShotGroups
from training.report.plot_style import class_order, new_figure

_GROUPS = {
    "many": f"many (> {MANY_ABOVE})",
    "medium": f"medium ({FEW_BELOW} to {MANY_ABOVE})",
    "few": f"few (< {FEW_BELOW})",
}
_MAX_ROWS = 40
_BAR = 12


def print_stats(console: Console, dataset: LongTailedDataset) -> None:
    """Print the tables of a data set."""
    counts = dataset.class_counts.tolist()
    groups = ShotGroups.from_counts(counts)
    console.print(_class_table(dataset, counts, groups))
    console.print(_group_table(dataset, counts, groups))
    lines = [
        f"{dataset.num_classes} classes of {max(counts)} to {min(counts)} training images: "
        f"imbalance factor {dataset.imbalance_factor:g}; split seed {dataset.split_seed}",
        f"images: train {len(dataset.train)}, validation {len(dataset.validation)}, "
        f"test {len(dataset.test)}",
    ]
    shortage = _validation_shortage(dataset)
    if shortage:
        lines.append(shortage)
    if dataset.cut:
        lines.append(dataset.cut)
    lines.extend(f"note: {note}" for note in dataset.notes)
    for line in lines:
        say(console, line)


def _per_class(dataset: LongTailedDataset, split: SplitName) -> list[int]:
    labels = dataset.split(split).labels.cpu()
    return torch.bincount(labels, minlength=dataset.num_classes).tolist()


def _class_table(dataset: LongTailedDataset, counts: list[int], groups: ShotGroups) -> Table:
    """One row per class, most frequent first; the middle of very many is left out."""
    table = Table(box=SIMPLE_HEAD, title=f"{dataset.name}, images per class")
    for name in ("label", "class", "group"):
        table.add_column(name, justify="right" if name == "label" else "left")
    for name in ("train", "validation", "test"):
        table.add_column(name, justify="right")
    table.add_column("train / largest")
    validation, test = (_per_class(dataset, split) for split in ("validation", "test"))
    order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    hidden = len(order) - _MAX_ROWS
    shown = order if hidden <= 0 else order[: _MAX_ROWS // 2] + order[-_MAX_ROWS // 2 :]
    for row, k in enumerate(shown):
        if hidden > 0 and row == _MAX_ROWS // 2:
            table.add_row("", f"({hidden} more)")
        bar = "█" * max(1, round(_BAR * counts[k] / max(counts)))
        numbers = (str(counts[k]), str(validation[k]), str(test[k]))
        table.add_row(str(k), escape(dataset.class_names[k]), groups.of(k), *numbers, bar)
    return table


def _group_table(dataset: LongTailedDataset, counts: list[int], groups: ShotGroups) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("shot group (by training images)")
    for name in ("classes", "train", "validation", "test"):
        table.add_column(name, justify="right")
    parts = [counts, _per_class(dataset, "validation"), _per_class(dataset, "test")]
    for name, members in groups.as_dict().items():
        sums = [str(sum(part[k] for k in members)) for part in parts]
        table.add_row(_GROUPS[name], str(len(members)), *sums)
    table.add_section()
    table.add_row("all", str(len(counts)), *(str(sum(part)) for part in parts))
    return table


def _validation_shortage(dataset: LongTailedDataset) -> str | None:
    """Say which classes have fewer validation images than others."""
    validation = _per_class(dataset, "validation")
    short = [k for k, count in enumerate(validation) if count < max(validation)]
    if not short:
        return None
    names = ", ".join(f"{dataset.class_names[k]} ({validation[k]})" for k in short[:5])
    more = f" and {len(short) - 5} more" if len(short) > 5 else ""
    return f"fewer than {max(validation)} validation images: {names}{more}"


def plot_class_counts(path: Path, dataset: LongTailedDataset) -> None:
    """Draw the training images per class, most frequent first, coloured by shot group.

    Raises:
        ConfigError: If the file's ending is no picture's, or it cannot be written.
    """
    counts = dataset.class_counts.tolist()
    groups = ShotGroups.from_counts(counts).as_dict()
    names = dataset.class_names
    classes = class_order({"class_counts": counts, "shot_groups": groups, "class_names": names})
    figure = new_figure(7.0, 3.8)
    axis = figure.subplots()
    bars = axis.bar(classes.places, classes.counts, color=classes.colours)
    classes.label_counts(axis, bars)
    axis.set_ylabel("training images (log)")
    classes.label_axis(axis)
    axis.set_title(
        f"{dataset.name}: {len(dataset.train)} training images, "
        f"imbalance factor {dataset.imbalance_factor:g}"
    )
    classes.legend(axis)
    axis.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"picture: expected a file to write that ends in .png, .svg or .pdf, got {str(path)!r} "
            f"({error})."
        ) from error
