"""Tables in markdown that read well as plain text too."""

from __future__ import annotations

import math
from collections.abc import Sequence


def plus_minus(mean: float, width: float, sign: str = "") -> str:
    """A fraction in per cent with its spread; a dash for what is not there.

    Example:
        >>> plus_minus(0.5, 0.0125), plus_minus(0.5, math.nan, "+")
        ('50.0 ± 1.2', '+50.0 ± -')
    """
    if math.isnan(mean):
        return "-"
    spread_text = "-" if math.isnan(width) else f"{100 * width:.1f}"
    return f"{100 * mean:{sign}.1f} ± {spread_text}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Align the columns: the first ``left`` ones to the left, the others to the right.

    Example:
        >>> print(table(["arm", "n"], [["ce", "3"]], left=1))
        | arm |   n |
        | --- | --: |
        | ce  |   3 |
    """
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    rule = [
        f"{'-' * (width - 1)}:" if position >= left else "-" * width
        for position, width in enumerate(widths)
    ]
    lines = []
    for row in (heads, rule, *rows):
        cells = [
            cell.rjust(width) if position >= left else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
