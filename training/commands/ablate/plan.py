"""From axes to single runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import AblateConfig, TrainConfig, flatten, to_dict, validate
from training.config.commands import GRIDS
from training.config.load import change_config
from training.errors import ConfigError
from training.models import check_groups
from training.report.loggers import check_loggers

# Decided by the grid, not by an axis.
_RESERVED = ("dataset", "seed", "output", "resume", "dry_run")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Attributes:
        name: Of the run folder, the log and the configuration file; unique in the grid.
        config: Its configuration.
        options: What the axes set, and what the arm has chosen.
        arm: Labels of its steps, but for those of a class order or of a value to choose: runs of
            one arm differ in these and in the seed.
    """

    name: str
    config: TrainConfig
    options: dict[str, Any]
    arm: str


@dataclass(frozen=True)
class Plan:
    """All runs of a grid.

    Attributes:
        name: Name of the grid.
        folder: Where everything lies.
        axes: The axes, resolved: axis -> label -> option -> value.
        runs: The runs.
        options: Names of the options that the axes set, in their order, and of the chosen ones.
        baseline: Value of each of them at the first step of every axis.
    """

    name: str
    folder: Path
    axes: dict[str, dict[str, dict[str, Any]]]
    runs: list[PlannedRun]
    options: list[str]
    baseline: dict[str, Any]

    @property
    def run_root(self) -> Path:
        """The folder that holds the run folders."""
        return self.folder / "runs"


Choice = dict[tuple[str, str], dict[str, Any]]
"""From data set and arm to the chosen values."""


def plan(config: AblateConfig, chosen: Choice | None = None) -> Plan:
    """Check the axes and plan all runs: data sets, then the axes, then the seeds.

    Args:
        config: The grid.
        chosen: What every arm has chosen, see `AblateConfig.choose`.

    Raises:
        ConfigError: If an axis is malformed, or a run's configuration makes no sense.
    """
    axes = resolve_axes(config.axes or GRIDS[config.grid])
    name = config.name or ("axes" if config.axes else config.grid)
    folder = Path(config.root) / name
    to_choose = chosen_options(config)
    runs = []
    for dataset in config.datasets:
        base = change_config(
            config.train,
            {**flatten(config.dataset_options.get(dataset) or {}), "dataset": dataset},
        )
        for steps in itertools.product(*(axis.items() for axis in axes.values())):
            options = {name: value for _, step in steps for name, value in step.items()}
            arm = _arm(axes, steps, {"data.class_order_seed", *to_choose})
            if chosen is not None:
                options.update(chosen[dataset, arm])
            for seed in config.seeds:
                labels = [label for label, _ in steps]
                run_name = _slug("-".join([dataset, *labels, str(seed)]))
                output = {"root": str(folder / "runs"), "name": run_name, "overwrite": False}
                changes = {**options, "seed": seed, "resume": "auto", "dry_run": False}
                changes.update(flatten(output, "output."))
                run = PlannedRun(run_name, change_config(base, changes), options, arm)
                _validate(run)
                runs.append(run)
    _check_names(runs)
    steps_options = (n for axis in axes.values() for step in axis.values() for n in step)
    names = list(dict.fromkeys([*steps_options, *(to_choose if chosen else ())]))
    first = flatten(to_dict(runs[0].config))
    return Plan(name, folder, axes, runs, names, {option: first[option] for option in names})


def chosen_options(config: AblateConfig) -> list[str]:
    """Names of the options that every arm chooses for itself."""
    steps = (step for axis in resolve_axes(config.choose).values() for step in axis.values())
    return list(dict.fromkeys(option for step in steps for option in step))


def resolve_axes(axes: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Turn both ways to write an axis into axis -> label -> option -> value.

    Raises:
        ConfigError: If an axis has no steps, steps twice, or an option that another axis has.

    Example:
        >>> resolve_axes({"optim.lr": [0.1, 0.2], "batches": {"b3rs": {"sampler": "b3rs"}}})
        {'optim.lr': {'lr=0.1': {'optim.lr': 0.1}, 'lr=0.2': {'optim.lr': 0.2}}, \
'batches': {'b3rs': {'sampler': 'b3rs'}}}
    """
    resolved: dict[str, dict[str, dict[str, Any]]] = {}
    owner: dict[str, str] = {}
    for axis, steps in _with_dots(axes).items():
        resolved[axis] = _steps(axis, steps)
        for option in {option for step in resolved[axis].values() for option in step}:
            if option.split(".")[0] in _RESERVED:
                raise ConfigError(
                    f"axes.{axis}: expected options other than {', '.join(_RESERVED)}, which the "
                    f"grid sets itself, got {option}; use --datasets and --seeds."
                )
            if option in owner:
                raise ConfigError(
                    f"axes.{axis}: expected options that no other axis sets, got {option}, which "
                    f"{owner[option]} sets."
                )
            owner[option] = axis
    return resolved


def _with_dots(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Give axes in a section their full name: {optim: {lr: [...]}} is {optim.lr: [...]}.

    The parser makes the first of several --axes options, and people write it in YAML. It cannot be
    an axis with labels: a label is never above a list.
    """
    found: dict[str, Any] = {}
    for axis, steps in axes.items():
        if isinstance(steps, dict) and any(isinstance(step, list) for step in steps.values()):
            found.update({f"{axis}.{name}": step for name, step in steps.items()})
        else:
            found[axis] = steps
    return found


def _steps(axis: str, steps: Any) -> dict[str, dict[str, Any]]:
    if isinstance(steps, list) and steps:
        labelled = {_label(axis, value): {axis: value} for value in steps}
        if len(labelled) == len(steps):
            return labelled
    elif isinstance(steps, dict) and steps:
        if all(isinstance(step, dict) for step in steps.values()):
            return {str(label): flatten(step) for label, step in steps.items()}
    raise ConfigError(
        f"axes.{axis}: expected a list of different values of the option {axis}, or a mapping from "
        f"labels to options with their values, got {steps!r}."
    )


def _label(option: str, value: Any) -> str:
    """A value as a part of the run's name; a number alone would not say what it is."""
    if isinstance(value, str):
        return value
    return f"{option.rpartition('.')[2]}={'null' if value is None else value}"


def _arm(
    axes: Mapping[str, dict[str, dict[str, Any]]],
    steps: Sequence[tuple[str, dict[str, Any]]],
    apart: set[str],
) -> str:
    """Name of an arm, without the axes that set nothing but the options ``apart``."""
    labels = [
        label
        for axis, (label, _) in zip(axes.values(), steps, strict=True)
        if not {option for step in axis.values() for option in step} <= apart
    ]
    return "-".join(labels) or "all"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", name)


def _validate(run: PlannedRun) -> None:
    try:
        validate(run.config)
        check_groups(run.config)
        check_loggers(run.config.output.loggers)
    except ConfigError as error:
        raise ConfigError(f"{run.name}: {error}") from error


def _check_names(runs: list[PlannedRun]) -> None:
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"axes: expected labels that differ in letters, digits, '.', '+', '=', '-' and '_', "
            f"got runs of the same name: {', '.join(twice)}."
        )
