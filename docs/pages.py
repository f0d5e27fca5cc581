"""What pages compute that is no use of the library: tables and pictures of committed results."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import matplotlib.pyplot as plt
from docstring_parser import parse as parse_docstring
from IPython.display import Markdown
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """Return a table that a page shows."""
    lines = [heads, ["---"] * len(heads), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def data_sets(grid: str) -> list[str]:
    """Return the data sets of a grid in results/."""
    return sorted({run["dataset"] for run in _digests(grid)})


def _digests(grid: str) -> list[dict[str, Any]]:
    paths = sorted((ROOT / "results" / grid).glob("*.json"))
    return [json.loads(path.read_text()) for path in paths if path.name != "grid.json"]


def accuracies(
    grid: str, data: str, arms: Sequence[str] = (), figures: Sequence[str] = ("accuracy",)
) -> Figure:
    """Draw accuracies on the test split, last epoch: every run a point, bars are means.

    Args:
        grid: folder in results/.
        data: its data set.
        arms: those that are shown, from top to bottom; all that have runs by default.
        figures: names in a digest's "last", a panel each; one that the data have not, as the
            accuracy on classes of few images, is left out, and so is the bar of an arm without it.
    """
    runs = [run for run in _digests(grid) if run["dataset"] == data]
    known = json.loads((ROOT / "results" / grid / "grid.json").read_text())["arms"]
    arms = arms or [arm for arm in known if arm in {run["arm"] for run in runs}]
    figures = [name for name in figures if any(run["last"][name] is not None for run in runs)]
    figure, panels = plt.subplots(
        1, len(figures), sharey=True, squeeze=False, figsize=(8, 0.5 + 0.4 * len(arms))
    )
    for axis, name in zip(panels[0], figures, strict=True):
        for place, arm in enumerate(arms):
            of_arm = [run["last"][name] for run in runs if run["arm"] == arm]
            assert of_arm, f"{grid} has no run of {arm} on {data}"
            found = [100 * value for value in of_arm if value is not None]
            axis.barh(place, sum(found) / max(1, len(found)), color="C0", alpha=0.4)
            axis.plot(found, [place] * len(found), "C0.")
        axis.set_xlabel(f"{name.replace('_', ' ')}, %")
        axis.set_yticks(range(len(arms)), arms)
    panels[0, 0].invert_yaxis()
    figure.tight_layout()
    return figure


def kernels() -> Markdown:
    """Return how far each CUDA C++ kernel has come, from the tables that the tools write."""
    resources = _by_kernel(ROOT / "csrc" / "cuda" / "resources.csv")
    modelled = _by_kernel(ROOT / "csrc" / "cuda" / "model.csv")
    measured = sorted((ROOT / "benchmarks" / "results").glob("gpu/*/benchmarks.json"))
    ran = ", ".join(path.parent.name for path in measured) or "no"
    rows = []
    for name, lines in sorted(resources.items()):
        registers = max(int(line["registers sm_90"]) for line in lines)
        shared = max(int(line["shared sm_90"]) for line in lines)
        times = [float(line["us"]) for line in modelled.get(name, ()) if line["us"]]
        ends = sorted({min(times), max(times)}) if times else []
        model = " to ".join(f"{time:g}" for time in ends) or "-"
        rows.append([f"`{name}`", len(lines), registers, shared, model, ran])
    heads = ["kernel", "instances", "registers", "shared, bytes", "by model, us", "measured"]
    return table(heads, rows)


def _by_kernel(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(newline="") as lines:
        for line in csv.DictReader(lines):
            name = line["kernel (nvcc 13.0)"].partition("<")[0]
            found.setdefault(name, []).append(line)
    return found


def features(kind: str) -> Markdown:
    """Return a table of features.csv, "whitening" or "training", and its sources below."""
    with (ROOT / "docs" / "features.csv").open(newline="") as lines:
        claims = [line for line in csv.DictReader(lines) if line["table"] == kind]
    packages = list(dict.fromkeys(line["package"] for line in claims))
    names = list(dict.fromkeys(line["feature"] for line in claims))
    answers = {(line["feature"], line["package"]): line for line in claims}
    rows = [[name, *(answers[name, package]["answer"] for package in packages)] for name in names]
    text = str(table(["", *packages], rows).data)
    for package in packages:
        sources = [f"{name}: {answers[name, package]['source']}" for name in names]
        text += f"\n\n**{package}.** " + "; ".join(sources) + "."
    return Markdown(text)


def options(config: type, prefix: str = "", skip: Sequence[str] = ()) -> list[list[str]]:
    """Return rows (option, default, what it does) of a command's dataclass, sections included."""
    documented: dict[str | None, str | None] = {}
    for owner in reversed(config.__mro__):
        found = parse_docstring(owner.__doc__ or "").params
        documented |= {parameter.arg_name: parameter.description for parameter in found}
    hints, rows = get_type_hints(config), []
    for field in fields(config):
        if field.name in skip:
            continue
        if is_dataclass(hints[field.name]):
            rows += options(hints[field.name], f"{prefix}{field.name}.")
            continue
        text = " ".join((documented.get(field.name) or "").split())
        values = [value for value in get_args(hints[field.name]) if isinstance(value, str)]
        choice = f" One of {', '.join(values)}." if values else ""
        rows.append([f"`{prefix}{field.name}`", _default(field), f"{text}{choice}"])
    return rows


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value: Any = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    return "null" if value is None else f"`{json.dumps(value)}`"
