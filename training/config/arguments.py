"""Fields of a command's configuration that are not plain ``--name`` options.

The command line looks at the metadata of a dataclass field.

Example:
    >>> from dataclasses import dataclass, field
    >>> @dataclass
    ... class PlotConfig:
    ...     run: str = field(metadata=POSITIONAL)
    ...     others: list[str] = field(default_factory=list, metadata=POSITIONAL)
    >>> PlotConfig(run="a").others
    []
"""

from __future__ import annotations

POSITIONAL = {"positional": "yes"}
"""Metadata of a field that the command line takes without a name: one value, or for a field of type
list any number of them."""
