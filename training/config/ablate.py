"""A grid of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.config.checks import check
from training.config.train import TrainConfig

# The grids that have a name: axis -> values of the option of that name, or, where a step along the
# axis changes several options, label -> option -> value. The first value is the baseline.
GRIDS: dict[str, dict[str, Any]] = {
    "2x2": {
        "whitening": ["none", "fused"],
        "batches": {
            "plain": {"sampler": "instance", "bet_period": None},
            "b3rs+bet": {"sampler": "b3rs", "bet_period": 8},
        },
    },
}


@dataclass
class AblateConfig:
    """Train every combination of the axes, for every data set and seed, and print the table.

    Attributes:
        grid: A grid that has a name: 2x2 is {whitening none, fused} x {plain batches, B3RS + BET}.
            Not used if there are axes.
        axes: Your own grid: any option of `train` and the list of its values, as in
            --axes.whitening "[none,fused]" --axes.optim.lr "[0.1,0.2]". A step that changes several
            options gets a label: --axes.batches "{plain: {sampler: instance}, b3rs: {sampler: b3rs,
            bet_period: 8}}". The first value of every axis is the baseline.
        datasets: Data sets.
        dataset_options: Options of single data sets, which override those of train, for instance
            {digits-lt: {optim.epochs: 30}}.
        seeds: Seeds, at least one, all different.
        train: What all runs share; its dataset and seed are not used.
        root: Folder for the grid's folder.
        name: Name of the grid's folder; null is the grid's name, or "axes".
        jobs: Runs at a time; >= 1. Each has train.threads threads.
    """

    grid: str = "2x2"
    axes: dict[str, Any] | None = None
    datasets: list[str] = field(default_factory=lambda: ["digits-lt"])
    dataset_options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    train: TrainConfig = field(default_factory=TrainConfig)
    root: str = "runs"
    name: str | None = None
    jobs: int = 1


def check_ablate(config: AblateConfig) -> None:
    """Check the ranges; the options of the axes are checked when the runs are planned."""
    check("jobs", config.jobs, config.jobs >= 1, ">= 1")
    check("grid", config.grid, config.grid in GRIDS, f"out of {', '.join(GRIDS)}")
    seeds = config.seeds
    unique = len(set(seeds)) == len(seeds)
    check("seeds", seeds, bool(seeds) and unique, "with at least one seed, each once")
    sets = config.datasets
    unique = len(set(sets)) == len(sets)
    check("datasets", sets, bool(sets) and unique, "with at least one data set, each once")
    unknown = sorted(set(config.dataset_options) - set(sets))
    check("dataset_options", unknown, not unknown, f"that names data sets of {', '.join(sets)}")
    check("name", config.name, config.name is None or "/" not in config.name, "without a slash")
