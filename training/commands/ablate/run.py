"""The command ``ablate``: a grid of runs from the plan to the table."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from training.commands.ablate.choose import choose, trial_config
from training.commands.ablate.execute import execute, last_words, log_path
from training.commands.ablate.plan import Plan, chosen_options, plan
from training.commands.ablate.state import RunState, is_finished, locked, write_manifest
from training.commands.ablate.together import check_together, execute_together
from training.commands.compare import Comparison, as_markdown, compare, write_tables
from training.config import AblateConfig, flatten, to_dict
from training.config.commands import check_ablate
from training.console import say
from training.runs.finished import read_run

SPLIT = "test"
CONFIDENCE = 0.95


class _Display:
    """One progress display for all runs: a bar on a terminal, a line per run elsewhere."""

    def __init__(self, console: Console, plan: Plan, states: dict[str, RunState]) -> None:
        self._console, self._plan, self._states = console, plan, states
        self._told: set[str] = {name for name, s in states.items() if s.status == "finished"}
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("runs"), BarColumn(bar_width=16), MofNCompleteColumn())
            text = TextColumn("{task.description}")
            self._bar = Progress(*columns, TimeElapsedColumn(), text, console=console)
            self._task = self._bar.add_task("", total=len(plan.runs), completed=len(self._told))

    def __enter__(self) -> _Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self) -> None:
        """Tell what has changed."""
        for run in self._plan.runs:
            state = self._states[run.name]
            if state.status in ("finished", "failed") and run.name not in self._told:
                self._told.add(run.name)
                line = f"{len(self._told)}/{len(self._plan.runs)}  {run.name}: {state.status}"
                line += f" after {state.seconds:.1f} s" if state.seconds is not None else ""
                if self._bar is None or state.status == "failed":
                    say(self._console, line)
        if self._bar is not None:
            running = [name for name, s in self._states.items() if s.status == "running"]
            description = ", ".join(running)
            self._bar.update(self._task, completed=len(self._told), description=description)


def run_ablate(config: AblateConfig, console: Console | None = None) -> int:
    """Run what is not finished yet, and print and write the table of what is.

    Runs that are finished with the planned configuration are kept, so the same command continues a
    grid that was interrupted; a run that did not end continues where it was saved last.

    Returns:
        The exit status: 0, or 1 if a run failed.

    Raises:
        ConfigError: If the axes make no sense; nothing has been run then.
        TrainingStopped: If SIGTERM or SIGINT came while runs shared this process.
    """
    console = console or Console()
    check_ablate(config)
    chosen = None
    if config.choose:
        trial = plan(trial_config(config))
        states, status = _carry_out(trial, config, console)
        if status:
            return status
        chosen = choose(trial, states, chosen_options(config))
        for (dataset, arm), options in chosen.items():
            values = ", ".join(f"{name} {value}" for name, value in options.items())
            say(console, f"{dataset}, {arm}: {values}, chosen on validation images")
    grid = plan(config, chosen)
    states, status = _carry_out(grid, config, console)
    _print_tables(console, grid, states)
    return status


def _carry_out(
    grid: Plan, config: AblateConfig, console: Console
) -> tuple[dict[str, RunState], int]:
    """Run what is not finished yet; return the states, and 1 if a run failed."""
    if config.one_process:
        check_together(grid)
    with locked(grid) as lock:
        done = [run.name for run in grid.runs if is_finished(grid, run)]
        states = {
            run.name: RunState("finished" if run.name in done else "waiting") for run in grid.runs
        }
        say(console, f"{len(grid.runs)} runs in {grid.folder}, {len(done)} of them finished before")
        with _Display(console, grid, states) as display:

            def on_change() -> None:
                write_manifest(grid, states)
                display.update()

            on_change()
            if config.one_process:
                execute_together(grid, states, config.jobs, on_change)
            else:
                execute(grid, states, config.jobs, lock, on_change)
    failed = [run for run in grid.runs if states[run.name].status == "failed"]
    for run in failed:
        say(
            console,
            f"failed: {run.name} (exit status {states[run.name].exit_status}): "
            f"{last_words(grid, run)}\n  {log_path(grid, run)}",
        )
    return states, 1 if failed else 0


def _print_tables(console: Console, grid: Plan, states: dict[str, RunState]) -> None:
    comparison = compare_grid(grid, states)
    if comparison is None:
        return
    text = as_markdown(comparison, SPLIT, CONFIDENCE)
    say(console, text)
    for path in write_tables(comparison, grid.folder, SPLIT, CONFIDENCE):
        say(console, f"  {path}")


def compare_grid(grid: Plan, states: dict[str, RunState]) -> Comparison | None:
    """Compare the finished runs, each data set for itself; null if there is none."""
    by_dataset: dict[str, list[str]] = {}
    first: dict[str, str] = {}  # run of each data set, which is one of the baseline
    for run in grid.runs:
        first.setdefault(run.config.dataset, run.name)
    for run in grid.runs:
        if states[run.name].status == "finished":
            by_dataset.setdefault(run.config.dataset, []).append(run.name)
    whole: Comparison | None = None
    for dataset, names in by_dataset.items():
        runs = [read_run(grid.run_root / name) for name in names]
        keys = ["dataset", *grid.options]
        baseline = _options(grid, first[dataset])
        has_baseline = any(_options(grid, name) == baseline for name in names)
        part = compare(runs, keys, baseline=baseline if has_baseline else None, split=SPLIT)
        if whole is None:
            whole = part
        else:
            whole.means.extend(part.means)
            whole.differences.extend(part.differences)
            whole.notes.extend(note for note in part.notes if note not in whole.notes)
    return whole


def _options(grid: Plan, name: str) -> dict[str, object]:
    """What the grid's options are in a run."""
    config = next(run.config for run in grid.runs if run.name == name)
    values = flatten(to_dict(config))
    return {option: values[option] for option in grid.options}
