"""Grids of runs: planned from axes, carried out in processes of their own, compared at the end."""

from training.commands.ablate.run import run_ablate

__all__ = ["run_ablate"]
