"""The command ``compare``: runs over their seeds, as a table for people and one for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.special import stdtrit  # scikit-learn depends on scipy

from training.config import CompareConfig
from training.config.commands import check_compare
from training.console import say
from training.errors import ConfigError
from training.evaluation.metrics import COLUMNS
from training.runs.comparable import Group, find_runs, group_runs
from training.runs.finished import Run
from training.runs.folder import write_text

CHECKPOINTS = ("last", "best")


@dataclass(frozen=True)
class Line:
    """A line of a table: a group and a checkpoint.

    Attributes:
        key: Values of the grouped options.
        checkpoint: "last" or "best".
        seeds: The seeds that count.
        figures: From the metric's name to its spread, in fractions.
    """

    key: tuple[Any, ...]
    checkpoint: str
    seeds: tuple[int, ...]
    figures: dict[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        keys: Names of the grouped options.
        means: A line per group and checkpoint.
        differences: Paired differences to the baseline, a line per group that has one and is not
            it itself, and checkpoint; empty without a baseline.
        notes: What a reader has to know.
    """

    keys: list[str]
    means: list[Line]
    differences: list[Line]
    notes: list[str]


def run_compare(config: CompareConfig, console: Console | None = None) -> Comparison:
    """Compare, print the tables, and write them if asked to.

    Raises:
        ConfigError: If a run is not finished, or runs are not comparable.
    """
    console = console or Console()
    check_compare(config)
    runs, unfinished = find_runs(config.runs, config.root)
    comparison = compare(
        runs, config.group_by, ignore=config.ignore, baseline=config.baseline, split=config.split
    )
    comparison.notes.extend(f"left out, not finished: {path}" for path in unfinished)
    text = as_markdown(comparison, config.split, config.confidence)
    say(console, text)
    if config.output is not None:
        for path in write_tables(comparison, Path(config.output), config.split, config.confidence):
            say(console, f"  {path}")
    return comparison


def compare(
    runs: Sequence[Run],
    group_by: Sequence[str] | None = None,
    *,
    ignore: Sequence[str] = (),
    baseline: Mapping[str, Any] | None = None,
    split: str = "test",
) -> Comparison:
    """Summarise runs over their seeds; the arguments are those of `CompareConfig`.

    Raises:
        ConfigError: If the runs are not comparable, or the baseline names no group.
    """
    keys, groups = group_runs(runs, group_by, ignore)
    means = [
        Line(group.key, kind, tuple(sorted(group.runs)), _spreads(_figures(group, kind, split)))
        for group in groups
        for kind in CHECKPOINTS
    ]
    differences = _differences(keys, groups, baseline, split) if baseline else []
    return Comparison(keys, means, differences, _commit_notes(runs))


def _figures(group: Group, kind: str, split: str) -> dict[str, dict[int, float | None]]:
    """From the metric to the seed to its value."""
    return {
        metric: {
            # A data set without a validation split has null instead of the results.
            seed: (run.summary[kind][split] or {}).get(metric)
            for seed, run in group.runs.items()
        }
        for metric in COLUMNS
    }


def _spreads(figures: Mapping[str, Mapping[int, float | None]]) -> dict[str, Spread]:
    return {metric: spread(list(values.values())) for metric, values in figures.items()}


def _differences(
    keys: Sequence[str], groups: Sequence[Group], baseline: Mapping[str, Any], split: str
) -> list[Line]:
    """Compare every group with the one that has the baseline's values and otherwise its own."""
    for name in baseline:
        if name not in keys:
            raise ConfigError(
                f"baseline: expected grouped options ({', '.join(keys)}), got {name!r}."
            )
    by_key = {json.dumps(group.key): group for group in groups}
    lines = []
    found = False
    for group in groups:
        pairs = zip(keys, group.key, strict=True)
        partner = by_key.get(json.dumps([baseline.get(name, value) for name, value in pairs]))
        found = found or partner is not None
        if partner is None or partner is group:
            continue
        for kind in CHECKPOINTS:
            ours, theirs = (_figures(g, kind, split) for g in (group, partner))
            spreads = {m: spread(paired_differences(ours[m], theirs[m])) for m in COLUMNS}
            seeds = tuple(sorted(group.runs.keys() & partner.runs.keys()))
            lines.append(Line(group.key, kind, seeds, spreads))
    if not found:
        raise ConfigError(
            f"baseline: expected values that a group has, got {dict(baseline)}; the groups are "
            f"{[dict(zip(keys, group.key, strict=True)) for group in groups]}."
        )
    return lines


def _commit_notes(runs: Sequence[Run]) -> list[str]:
    """Runs of different code are compared, but not without a word."""
    commits = set()
    for run in runs:
        if run.folder.environment.is_file():
            environment = json.loads(run.folder.environment.read_text(encoding="utf-8"))
            commits.add(environment.get("commit"))
    if len(commits) < 2:
        return []
    names = ", ".join(sorted(str(commit)[:8] for commit in commits))
    return [f"the runs were made by different commits of the code: {names}"]


def as_markdown(comparison: Comparison, split: str, confidence: float) -> str:
    """The tables in markdown, columns aligned so that they read well as plain text too."""
    heads = [*comparison.keys, "checkpoint", "seeds", *COLUMNS.values()]
    title = f"Accuracy in % on the {split} split: mean ± sample standard deviation over seeds"
    rows = [_row(line, lambda s: _plus_minus(s.mean, s.std)) for line in comparison.means]
    parts = [f"{title}.", _table(heads, rows)]
    if comparison.differences:
        parts.append(
            "Difference to the baseline in percentage points, paired by seed: mean ± half of the "
            f"{100 * confidence:g} % interval (Student's t)."
        )
        rows = [
            _row(line, lambda s: _plus_minus(s.mean, s.half_width(confidence), sign="+"))
            for line in comparison.differences
        ]
        parts.append(_table(heads, rows))
    parts.extend(f"Note: {note}." for note in comparison.notes)
    return "\n\n".join(parts)


def _row(line: Line, cell: Any) -> list[str]:
    key = [_text(value) for value in line.key]
    figures = [cell(line.figures[metric]) for metric in COLUMNS]
    return [*key, line.checkpoint, str(len(line.seeds)), *figures]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plus_minus(mean: float, width: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    spread_text = "-" if math.isnan(width) else f"{100 * width:.1f}"
    return f"{100 * mean:{sign}.1f} ± {spread_text}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    right = len(heads) - len(COLUMNS) - 1  # the number of seeds and the figures
    rule = [
        f"{'-' * (width - 1)}:" if position >= right else "-" * width
        for position, width in enumerate(widths)
    ]
    lines = []
    for row in (heads, rule, *rows):
        cells = [
            cell.rjust(width) if position >= right else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_tables(comparison: Comparison, folder: Path, split: str, confidence: float) -> list[Path]:
    """Write compare.md, compare.csv and, with a baseline, differences.csv; return their paths.

    In the CSV files accuracies are fractions at full precision, and a figure that is not there is
    empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "compare.md", folder / "compare.csv"]
    write_text(paths[0], as_markdown(comparison, split, confidence) + "\n")
    write_text(paths[1], _as_csv(comparison.keys, comparison.means, confidence))
    if comparison.differences:
        paths.append(folder / "differences.csv")
        write_text(paths[2], _as_csv(comparison.keys, comparison.differences, confidence))
    return paths


def _as_csv(keys: Sequence[str], lines: Sequence[Line], confidence: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("n", "mean", "std", "half_width")
    writer.writerow(
        [*keys, "checkpoint", "seeds", *(f"{m}_{figure}" for m in COLUMNS for figure in figures)]
    )
    for line in lines:
        cells: list[Any] = []
        for metric in COLUMNS:
            s = line.figures[metric]
            numbers = (s.mean, s.std, s.half_width(confidence))
            cells += [s.n, *("" if math.isnan(number) else repr(number) for number in numbers)]
        seeds = " ".join(map(str, line.seeds))
        key = ["" if value is None else value for value in line.key]
        writer.writerow([*key, line.checkpoint, seeds, *cells])
    return text.getvalue()


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a figure over seeds.

    Attributes:
        n: Number of values.
        mean: Their mean; NaN if there is none.
        std: Sample standard deviation (n - 1); NaN for fewer than two values.
    """

    n: int
    mean: float
    std: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.n) if self.n else math.nan

    def half_width(self, confidence: float) -> float:
        """Half the width of Student's t interval of the mean; NaN for fewer than two values.

        Example:
            >>> round(spread([1.0, 2.0, 3.0]).half_width(0.95), 3)  # 4.303 / sqrt(3)
            2.484
        """
        if self.n < 2:
            return math.nan
        return float(stdtrit(self.n - 1, 0.5 + confidence / 2)) * self.error


def spread(values: Sequence[float | None]) -> Spread:
    """Summarise the values that are there; None and NaN are not.

    Example:
        >>> spread([1.0, None, 3.0])
        Spread(n=2, mean=2.0, std=1.4142135623730951)
    """
    present = [v for v in values if v is not None and not math.isnan(v)]
    n = len(present)
    mean = math.fsum(present) / n if n else math.nan
    squares = math.fsum((v - mean) ** 2 for v in present)
    return Spread(n, mean, math.sqrt(squares / (n - 1)) if n > 1 else math.nan)


def paired_differences(
    values: Mapping[int, float | None], baseline: Mapping[int, float | None]
) -> list[float | None]:
    """Value minus baseline for every seed that both have, in the order of the seeds.

    Example:
        >>> paired_differences({0: 0.5, 1: 0.75}, {1: 0.5, 2: 1.0})
        [0.25]
    """
    pairs = [(values[seed], baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
    return [None if a is None or b is None else a - b for a, b in pairs]
