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

from training.config import CompareConfig
from training.config.commands import check_compare
from training.console import say
from training.errors import ConfigError
from training.evaluation.metrics import COLUMNS
from training.evaluation.spread import Spread, paired_differences, spread
from training.report.markdown import plus_minus, table
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
    rows = [_row(line, lambda s: plus_minus(s.mean, s.std)) for line in comparison.means]
    left = len(heads) - len(COLUMNS) - 1  # the others are the number of seeds and the figures
    parts = [f"{title}.", table(heads, rows, left)]
    if comparison.differences:
        parts.append(
            "Difference to the baseline in percentage points, paired by seed: mean ± half of the "
            f"{100 * confidence:g} % interval (Student's t)."
        )
        rows = [
            _row(line, lambda s: plus_minus(s.mean, s.half_width(confidence), sign="+"))
            for line in comparison.differences
        ]
        parts.append(table(heads, rows, left))
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
