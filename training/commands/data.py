"""The command ``data``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from training.commands.data_stats import plot_class_counts, print_stats
from training.commands.data_verify import verify
from training.config import validate
from training.config.data_command import DataCommandConfig
from training.console import say
from training.data import build_dataset
from training.errors import ConfigError
from training.reproducibility import resolve_seeds


def run_data(config: DataCommandConfig, console: Console | None = None) -> None:
    """Print the statistics of a data set and draw them, or verify its files.

    Raises:
        ConfigError: If an option makes no sense, or a file is not right.
    """
    console = console or Console()
    run = config.as_train()
    validate(run)
    split_seed = resolve_seeds(run.seed, run.seeds).split
    if config.action == "verify":
        if config.picture is not None:
            raise ConfigError(
                f"picture: expected null with data verify, which draws none, got "
                f"{config.picture!r}; leave it out, or use data stats."
            )
        verify(run, split_seed, console)
        return
    dataset = build_dataset(run, split_seed)
    print_stats(console, dataset)
    path = Path(config.picture or f"runs/class-counts-{config.dataset}.png")
    plot_class_counts(path, dataset)
    say(console, f"picture: {path}")
