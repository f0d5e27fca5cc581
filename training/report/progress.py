"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.console import say
from training.evaluation.metrics import COLUMNS
from training.runs.folder import RunFolder


class Reporter(Protocol):
    """Is told about steps and epochs."""

    def start(self, step: int) -> None:
        """Training begins; this many steps were done before, in a run that is continued."""
        ...

    def step(self, loss: float) -> None:
        """One training step is done."""
        ...

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done and evaluated; the record is that of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Training is over, or has failed."""
        ...


class PlainReporter:
    """One line per epoch, for logs."""

    def __init__(self, console: Console, epochs: int) -> None:
        """Print to a console."""
        self._console = console
        self._epochs = epochs

    def start(self, step: int) -> None:
        """Say nothing."""

    def step(self, loss: float) -> None:
        """Say nothing: one line per epoch is enough for a log."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch's line."""
        text = f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}  "
        say(self._console, text + _describe(record))

    def close(self) -> None:
        """Do nothing: every line is complete."""


class BarReporter:
    """A progress bar over all steps, with the last epoch's figures."""

    def __init__(self, console: Console, epochs: int, steps_per_epoch: int) -> None:
        """Prepare the bar on a console."""
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._epochs, self._steps_per_epoch, self._done = epochs, steps_per_epoch, 0
        total = epochs * steps_per_epoch
        self._task = self._progress.add_task("", total=total, epoch=self._epoch())
        self._last = ""

    def _epoch(self) -> str:
        """The epoch that the next step belongs to, of all epochs."""
        return f"{min(self._done // self._steps_per_epoch + 1, self._epochs)}/{self._epochs}"

    def start(self, step: int) -> None:
        """Show the bar, as far as the run has come."""
        self._done = step
        self._progress.update(self._task, completed=step, epoch=self._epoch())
        self._progress.start()

    def step(self, loss: float) -> None:
        """Advance the bar; show the step's loss, where it is known without waiting for a GPU."""
        text = "" if math.isnan(loss) else f"step loss {loss:.3f}  "
        epoch = self._epoch()  # of the step that is done
        self._done += 1
        self._progress.update(self._task, advance=1, description=text + self._last, epoch=epoch)

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the epoch's figures."""
        split = _shown_split(record)
        self._last = f"epoch loss {record['train']['loss']:.3f}"  # all of it fits 80 columns
        if split is not None:
            self._last += f"  {split[:3]} {percent(record[split]['accuracy'])} %"
        self._progress.update(self._task, description=self._last)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def build_reporter(console: Console, epochs: int, steps_per_epoch: int) -> Reporter:
    """Return a bar on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return BarReporter(console, epochs, steps_per_epoch)
    return PlainReporter(console, epochs)


def percent(value: float | None) -> str:
    """Format a fraction as a percentage; a dash if there is no image."""
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def print_results(console: Console, summary: dict[str, Any], folder: RunFolder) -> None:
    """Print the closing table and where everything lies."""
    counts, groups = summary["class_counts"], summary["shot_groups"]
    title = f"{summary['dataset']}, whitening {summary['whitening']}, loss {summary['loss']}"
    table = Table(title=f"{title}: accuracy in %", box=SIMPLE_HEAD)
    table.add_column("epoch", no_wrap=True)
    table.add_column("split", no_wrap=True)
    for heading in (*COLUMNS.values(), "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in ("last", "best"):
        for split in ("validation", "test"):
            result = summary[kind][split]
            if result is None:  # the data set has no such split
                continue
            cells = [*(percent(result[c]) for c in COLUMNS), f"{result['loss']:.3f}"]
            table.add_row(f"{kind} ({summary[kind]['epoch']})", split, *cells)
    console.print(table)
    shots = ", ".join(
        f"{name}: {len(members)} classes, {sum(counts[k] for k in members)} training images"
        for name, members in groups.items()
    )
    say(console, shots)
    say(console, _selection_sentence(summary["selection"]))
    say(
        console,
        f"{summary['wall_seconds']:.1f} s, {summary['images_per_second']:.0f} images/s in training",
    )
    paths = [folder.summary, folder.metrics, folder.checkpoint("last"), folder.checkpoint("best")]
    if folder.report.exists():
        paths = [folder.report, folder.path / "plots", *paths]
    for path in paths:
        say(console, f"  {path}")


def _selection_sentence(selection: dict[str, Any]) -> str:
    if selection["split"] == "none":
        return "best = last: the data set has no validation split, so nothing was chosen."
    return (
        f"best = highest {selection['metric'].replace('_', ' ')} on the {selection['split']} split "
        "(a part of the training data); the test split chose nothing."
    )


def _shown_split(record: dict[str, Any]) -> str | None:
    """The split whose figures a line shows: validation, else test; None if none was evaluated."""
    return next((split for split in ("validation", "test") if record[split] is not None), None)


def _describe(record: dict[str, Any]) -> str:
    text = f"loss {record['train']['loss']:.3f}"
    split = _shown_split(record)
    if split is not None:
        result = record[split]
        shots = "/".join(percent(result[name]) for name in ("many", "medium", "few"))
        text += f"  {split} {percent(result['accuracy'])} %  many/medium/few {shots}"
    return f"{text}  {record['images_per_second']:.0f} images/s"
