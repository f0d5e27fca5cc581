"""The command ``report``: RESULTS.md from the digests of runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from training.config.commands import ReportConfig, check_report
from training.console import say
from training.report.digest import collect
from training.report.results import build_results, draw_results
from training.runs.folder import write_text


def run_report(config: ReportConfig, console: Console | None = None) -> int:
    """Collect digests, if asked to, and write RESULTS.md and its pictures, or only compare it.

    Returns:
        The exit status: 1 if ``check`` finds another RESULTS.md, else 0.

    Raises:
        ConfigError: If there are no digests, or the grid to collect is none.
    """
    console = console or Console()
    check_report(config)
    results = Path(config.results)
    if config.collect is not None:
        files = collect(Path(config.collect), results, config.baseline, config.pairs)
        say(console, f"  {files[0].parent}: {len(files) - 1} digests")
    path = results.resolve().parent / "RESULTS.md"
    text = build_results(results)
    if config.check:
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        say(console, f"  {path} is {'up to date' if same else 'not what the digests give'}")
        return 0 if same else 1
    write_text(path, text)
    draw_results(results)
    say(console, f"  {path}")
    return 0
