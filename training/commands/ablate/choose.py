"""Options that every arm of a grid chooses for itself, on validation images, before its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from training.commands.ablate.plan import Choice, Plan, resolve_axes
from training.commands.ablate.state import RunState
from training.config import AblateConfig
from training.config.commands import GRIDS
from training.errors import ConfigError
from training.runs.finished import read_run
from training.runs.history import SELECTION_METRIC, SELECTION_SPLIT


def trial_config(config: AblateConfig) -> AblateConfig:
    """Return the grid of the runs to choose by: the options to choose are axes too."""
    name = config.name or ("axes" if config.axes else config.grid)
    axes = resolve_axes(config.axes or GRIDS[config.grid])
    return replace(
        config,
        axes={**axes, **resolve_axes(config.choose)},
        seeds=config.choose_seeds,
        name=f"{name}-choice",
    )


def choose(trial: Plan, states: Mapping[str, RunState], names: Sequence[str]) -> Choice:
    """Return for every arm the values with the highest mean accuracy on validation images.

    The figure is the balanced accuracy of the last epoch, averaged over seeds and class orders; of
    equals the first one listed is taken.

    Args:
        trial: The grid of `trial_config`, carried out.
        states: Of its runs; all finished.
        names: Of the options, see `chosen_options`.

    Raises:
        ConfigError: If the runs have no validation images.
    """
    scores: dict[tuple[str, str], dict[tuple[object, ...], list[float]]] = {}
    for run in trial.runs:
        assert states[run.name].status == "finished"
        result = read_run(trial.run_root / run.name).summary["last"][SELECTION_SPLIT]
        if result is None:
            raise ConfigError(
                f"choose: expected runs with validation images, {run.name} has none; set "
                "train.data.validation_per_class."
            )
        values = tuple(run.options[name] for name in names)
        arm = scores.setdefault((run.config.dataset, run.arm), {})
        arm.setdefault(values, []).append(result[SELECTION_METRIC])
    return {key: dict(zip(names, _best(arm), strict=True)) for key, arm in scores.items()}


def _best(arm: Mapping[tuple[object, ...], Sequence[float]]) -> tuple[object, ...]:
    means = {values: math.fsum(found) / len(found) for values, found in arm.items()}
    return max(means, key=lambda values: means[values])
