"""RESULTS.md: the tables of all grids, from the digests of their runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config.datasets import DATASETS
from training.errors import ConfigError
from training.evaluation.spread import Spread, paired_differences, spread
from training.report.digest import GRID, baseline_of
from training.report.markdown import plus_minus, table
from training.report.plot_results import plot_grid

CONFIDENCE = 0.95
VERDICTS = "verdicts.md"
CLAIMS = "claims.json"

Digest = Mapping[str, Any]
Unit = tuple[int, int]  # class order (-1: that of the labels) and seed: what arms are paired by
Arms = dict[str, dict[Unit, Digest]]

_INTRODUCTION = """\
Made by `python -m training report {results}` from the digests of the runs in `{results}/`; the
verdicts are `{results}/{verdicts}`. Accuracies are per cent of the test split, which chose nothing:
mean ± half of the {confidence:g} % interval (Student's t) over n runs, which differ in the seed,
and in the order of the classes where there are several. "Best" is the epoch that the validation
split chose, everything else is of the last one; many, medium and few are the classes with more than
100, 20 to 100 and fewer than 20 training images. Differences are percentage points, paired by seed
and class order; (n) is the number of pairs."""
# Heading, and where the figure stands in a digest.
_ACCURACIES = {
    "last": ("last", "accuracy"),
    "best": ("best", "accuracy"),
    "many": ("last", "many"),
    "medium": ("last", "medium"),
    "few": ("last", "few"),
    "worst class": ("last", "worst_class_accuracy"),
}
_MECHANISM = {
    "correlation before": "correlation_before",
    "correlation": "correlation",
    "spectral entropy": "spectral_entropy",
    "effective rank": "effective_rank",
    "Hessian condition": "hessian_condition",
    "gradient cosine": "gradient_cosine",
    "covariance fluctuation": "covariance_fluctuation",
    "classes a batch": "distinct_classes",
}
_OOD = {
    "max softmax": "max_softmax",
    "Mahalanobis, layer": "mahalanobis_layer",
    "pooled, unit norm": "mahalanobis_pooled",
    "per class, raw": "mahalanobis_raw",
}
_GAINS = {"gain, layer": "mahalanobis_layer", "gain, pooled": "mahalanobis_pooled"}
# What of it is drawn beside the accuracy, and how.
_DRAWN = {
    "correlation": "mean |correlation|",
    "effective_rank": "effective rank",
    "hessian_condition": "log10 Hessian condition",
    "gradient_cosine": "gradients' |cosine|",
    "covariance_fluctuation": "covariance fluctuation",
}


def build_results(results: Path) -> str:
    """Return RESULTS.md; the same files give the same text.

    Args:
        results: Folder of the digests.

    Raises:
        ConfigError: If there is no digest, an arm has a run twice, or a file is none of these.
    """
    grids = _grids(results)
    name = results.resolve().name
    parts = ["# Results"]
    parts.append(_INTRODUCTION.format(results=name, verdicts=VERDICTS, confidence=100 * CONFIDENCE))
    parts += _claims(results)
    verdicts = results / VERDICTS
    if verdicts.is_file():
        parts.append(verdicts.read_text(encoding="utf-8").strip("\n"))
    for folder in grids:
        parts.append(f"## {folder.name}")
        for data in read_grid(folder):
            parts.append(f"### {data.title}")
            parts.extend(_tables(data.arms, data.baseline, data.pairs))
            parts.append(f"![{data.title}]({name}/{folder.name}/{data.picture})")
    return "\n\n".join(parts) + "\n"


def _claims(results: Path) -> list[str]:
    """Return the tables that `CLAIMS` asks for: differences between two arms, a row each.

    The file has ``"columns"``, ``{title: [folder, ...]}``, and ``"tables"``,
    ``{title: [[row, arm, minus], ...]}``. A cell is of the first grid of its column that has both
    arms, a dash if none has; a column of dashes alone is left out.
    """
    path = results / CLAIMS
    if not path.is_file():
        return []
    asked = _read(path)
    grids = {name for names in asked["columns"].values() for name in names}
    missing = sorted(name for name in grids if not (results / name / GRID).is_file())
    if missing:
        raise ConfigError(f"{path}: expected folders with {GRID}, {missing} have none.")
    read = {name: [data.arms for data in read_grid(results / name)] for name in grids}
    columns = {
        title: [arms for name in names for arms in read[name]]
        for title, names in asked["columns"].items()
    }
    parts = []
    for title, differences in asked["tables"].items():
        cells = {
            column: [_counted(sets, arm, minus) for _, arm, minus in differences]
            for column, sets in columns.items()
        }
        shown = {column: found for column, found in cells.items() if set(found) != {"-"}}
        rows = [
            [what, *found] for (what, *_), *found in zip(differences, *shown.values(), strict=True)
        ]
        empty = [row[0] for row in rows if set(row[1:]) <= {"-"}]
        if empty:
            raise ConfigError(f"{path}: no grid has both arms of {empty}.")
        parts += [f"## {title}", table(["", *shown], rows, left=1)]
    return parts


def _counted(sets: Sequence[Arms], arm: str, minus: str) -> str:
    """The difference of two arms, with the number of pairs."""
    for arms in sets:
        if arm in arms and minus in arms:
            count, last, *_ = _difference("", arms[arm], arms[minus])[1:]
            return f"{last} ({count})"
    return "-"


def draw_results(results: Path) -> None:
    """Draw the picture of every grid and data set, beside its digests."""
    for folder in _grids(results):
        for data in read_grid(folder):
            path = folder / data.picture
            plot_grid(path, _columns(data.arms), list(data.arms), CONFIDENCE)


def _grids(results: Path) -> list[Path]:
    grids = sorted(path.parent for path in results.glob(f"*/{GRID}"))
    if not grids:
        raise ConfigError(
            f"results: expected a folder with digests of runs, {results} has none; collect some: "
            f"python -m training report {results} --collect runs/GRID"
        )
    return grids


@dataclass(frozen=True)
class GridData:
    """The runs of a grid on one data set.

    Attributes:
        title: Data set and imbalance.
        picture: Name of the picture's file.
        arms: Digests, in the grid's order.
        baseline: See `baseline_of`.
        pairs: Arms that are compared with each other.
    """

    title: str
    picture: str
    arms: Arms
    baseline: str
    pairs: list[list[str]]


def read_grid(folder: Path) -> list[GridData]:
    """Read the digests of a grid, each data set for itself."""
    grid = _read(folder / GRID)
    data: dict[tuple[str, float | None], Arms] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == GRID:
            continue
        run = _read(path)
        arms = data.setdefault((run["dataset"], run["imbalance_factor"]), {})
        order = run["class_order_seed"]
        unit = (-1 if order is None else order, run["seed"])
        if unit in arms.setdefault(run["arm"], {}):
            raise ConfigError(
                f"{path}: expected each seed and class order once per arm, but {run['arm']} has "
                f"seed {run['seed']} twice; remove one of the files."
            )
        arms[run["arm"]][unit] = run
    found = []
    for (dataset, factor), arms in data.items():
        title = DATASETS[dataset].title if dataset in DATASETS else ""
        cut = "" if factor is None else f", imbalance {factor:g}"
        picture = f"{dataset}.png" if factor is None else f"{dataset}-{factor:g}.png"
        ordered = {arm: arms[arm] for arm in grid["arms"] if arm in arms}
        pairs = [pair for pair in grid.get("pairs", []) if ordered.keys() >= set(pair)]
        shown = f"{title or dataset}{cut}"
        found.append(GridData(shown, picture, ordered, grid["baseline"], pairs))
    return found


def _columns(arms: Arms) -> dict[str, list[Spread]]:
    """What the picture shows: the accuracy, and the figures that some run has."""
    accuracies = [_figures(runs, "last", "accuracy") for runs in arms.values()]
    columns = {"accuracy": [spread(list(figures.values())) for figures in accuracies]}
    for name, title in _DRAWN.items():
        found = [_figures(runs, "mechanism", name) for runs in arms.values()]
        if name == "hessian_condition":
            found = [{u: v and math.log10(v) for u, v in f.items()} for f in found]
        columns[title] = [spread(list(f.values())) for f in found]
    return {title: spreads for title, spreads in columns.items() if any(s.n for s in spreads)}


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, got: {error}.") from error
    return found


def _tables(arms: Arms, baseline: str, pairs: Sequence[Sequence[str]]) -> list[str]:
    heads = ["arm", "weight decay", "epochs", "n", *_ACCURACIES, "minutes"]
    rows = []
    for arm, runs in arms.items():
        cells = [_interval(_figures(runs, *place)) for place in _ACCURACIES.values()]
        minutes = spread(list(_figures(runs, "minutes").values())).mean
        settings = [_all(runs, name) for name in ("weight_decay", "epochs")]
        rows.append([arm, *settings, str(len(runs)), *cells, f"{minutes:.1f}"])
    parts = [table(heads, rows, left=1)]
    compared = {arm: baseline_of(arm, baseline, arms) for arm in arms}
    others = [
        _difference(arm, arms[arm], arms[to])
        for arm, to in compared.items()
        if to is not None and to != arm
    ]
    which = "" if baseline in arms else ", all else equal"
    more = [_difference(f"{a} - {b}", arms[a], arms[b]) for a, b in pairs]
    for title, rows in ((f"Difference to {baseline}{which}:", others), ("Differences:", more)):
        if rows:
            parts += [title, table(["arm", "n", *_ACCURACIES], rows, left=1)]
    parts += _mechanism(arms)
    parts += _ood(arms)
    return parts


def _all(runs: Mapping[Unit, Digest], name: str) -> str:
    """The values of a setting, those of all runs of an arm."""
    return ", ".join(f"{value:g}" for value in sorted({run[name] for run in runs.values()}))


def _figures(runs: Mapping[Unit, Digest], *place: str) -> dict[Unit, float | None]:
    """A figure of every run; null where the run has none."""
    found = {}
    for unit, run in runs.items():
        value: Any = run
        for key in place:
            value = (value or {}).get(key)
        found[unit] = value
    return found


def _interval(figures: Mapping[Unit, float | None], sign: str = "") -> str:
    s = spread(list(figures.values()))
    return plus_minus(s.mean, s.half_width(CONFIDENCE), sign)


def _difference(
    arm: str, runs: Mapping[Unit, Digest], baseline: Mapping[Unit, Digest]
) -> list[str]:
    cells = []
    for place in _ACCURACIES.values():
        differences = paired_differences(_figures(runs, *place), _figures(baseline, *place))
        cells.append(_interval({(0, i): d for i, d in enumerate(differences)}, sign="+"))
    return [arm, str(len(runs.keys() & baseline.keys())), *cells]


def _mechanism(arms: Arms) -> list[str]:
    """Means of what `diagnose` found; of the Hessian's condition the geometric one."""
    rows = []
    for arm, runs in arms.items():
        found = {u: run for u, run in runs.items() if run.get("mechanism")}
        if found:
            cells = [_mean(_figures(found, "mechanism", n), n) for n in _MECHANISM.values()]
            rows.append([arm, str(len(found)), *cells])
    if not rows:
        return []
    text = (
        "Features that the classifier sees (and their correlation before the layer) on the test "
        "split, and training batches: means over n runs, of the Hessian's condition the geometric "
        "mean where it is finite."
    )
    return [text, table(["arm", "n", *_MECHANISM], rows, left=1)]


def _mean(figures: Mapping[Unit, float | None], name: str) -> str:
    values = list(figures.values())
    if name == "hessian_condition":
        logs = spread([None if v is None else math.log(v) for v in values])
        return _number(Spread(logs.n, math.exp(logs.mean) if logs.n else math.nan, math.nan))
    return _number(spread(values))


def _number(s: Spread) -> str:
    return "-" if math.isnan(s.mean) else f"{s.mean:.3g}"


def _ood(arms: Arms) -> list[str]:
    """A table for every foreign data set."""
    names = dict.fromkeys(
        name for runs in arms.values() for run in runs.values() for name in run.get("ood", {})
    )
    parts = []
    for name in names:
        rows = []
        for arm, runs in arms.items():
            found = {u: run["ood"][name] for u, run in runs.items() if name in run.get("ood", {})}
            if found:
                rows.append([arm, str(len(found)), *_ood_cells(found)])
        title = DATASETS[name].title if name in DATASETS else ""
        parts += [
            f"Out of distribution, against {title or name}: AUROC (%), two gains over "
            "the maximum softmax probability, paired, and FPR at 95 % TPR (%).",
            table(["arm", "n", *_OOD, *_GAINS, *(f"FPR95, {head}" for head in _OOD)], rows, left=1),
        ]
    return parts


def _ood_cells(found: Mapping[Unit, Mapping[str, Sequence[float]]]) -> list[str]:
    def of(score: str, place: int) -> dict[Unit, float | None]:
        return {u: scores[score][place] if score in scores else None for u, scores in found.items()}

    def gain(score: str) -> str:
        gains = paired_differences(of(score, 0), of("max_softmax", 0))
        return _interval({(0, i): found for i, found in enumerate(gains)}, sign="+")

    return [
        *(_interval(of(score, 0)) for score in _OOD.values()),
        *(gain(score) for score in _GAINS.values()),
        *(_interval(of(score, 1)) for score in _OOD.values()),
    ]
