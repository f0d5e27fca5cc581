"""How text reaches a person, or the file that the output goes to."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: object, end: str = "\n") -> None:
    """Print text as it is: no line is broken inside a path, and brackets are no markup."""
    console.print(str(text), end=end, highlight=False, markup=False, soft_wrap=True)
