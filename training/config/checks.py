"""The forms in which a wrong value, and one without effect, are reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from training.errors import ConfigError


def check(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Raise unless ``ok`` and, for a float, finite.

    Raises:
        ConfigError: Naming the option, the values that are allowed and the value that came.
    """
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{name}: expected a value {allowed}, got {value!r}.")


def check_unused(name: str, value: Any, default: Any, where: str, instead: str = "") -> None:
    """Raise if an option is set where it has no effect: no silent no-op.

    Args:
        name: As on the command line.
        value: What came.
        default: What it is when it is not set.
        where: "with ..." or "beside ...", and why that takes no notice of the option.
        instead: With what the option has an effect.

    Raises:
        ConfigError: Naming both remedies.
    """
    if value != default:
        shown = "null" if default is None else repr(default)
        remedy = f"use {instead}, or leave" if instead else "leave"
        raise ConfigError(
            f"{name}: expected the default {shown} {where}, got {value!r}; {remedy} the option out."
        )


def check_unused_options(
    section: str, options: Any, table: Mapping[str, Sequence[str]], flag: str, chosen: str
) -> None:
    """Raise if an option is set that others have, and what is chosen has not.

    Args:
        section: What comes before the options' names, with its dot.
        options: A dataclass.
        table: All that can be chosen, and which of the options each takes notice of; an option that
            none has is left alone.
        flag: What comes before the choice on the command line, with its space.
        chosen: What is chosen.
    """
    where = f"with {flag}{chosen}, which has no such option"
    for field in fields(options):
        others = [other for other, names in table.items() if field.name in names]
        if others and chosen not in others:
            made = field.default_factory
            default = field.default if made is MISSING else made()
            value, instead = getattr(options, field.name), flag + " or ".join(others)
            check_unused(section + field.name, value, default, where, instead)


POSITIONAL = {"positional": "yes"}
"""Metadata of a field that the command line takes without a name: one value, or for a field of type
list any number of them."""
