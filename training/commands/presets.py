"""The command ``presets``: what there is."""

from __future__ import annotations

from rich.console import Console

from training.config.commands import PresetsConfig
from training.console import say
from training.presets import FOLDER, first_comment, methods, protocols


def run_presets(config: PresetsConfig, console: Console | None = None) -> None:
    """Print a line for each protocol and each method."""
    console = console or Console()
    lines = ["train --config PROTOCOL/METHOD, for example cifar100-lt-100/ours", "", "protocols"]
    for name in protocols():
        lines.append(f"  {name:<18}{first_comment(FOLDER / name / 'protocol.yaml')}")
    lines += ["", "methods"]
    for name in methods():
        lines.append(f"  {name:<18}{first_comment(FOLDER / 'methods' / f'{name}.yaml')}")
    say(console, "\n".join(lines))
