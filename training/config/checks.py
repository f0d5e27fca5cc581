"""The one form in which a wrong value is reported."""

from __future__ import annotations

import math
from typing import Any

from training.errors import ConfigError


def check(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Raise unless ``ok`` and, for a float, finite.

    Raises:
        ConfigError: Naming the option, the values that are allowed and the value that came.
    """
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{name}: expected a value {allowed}, got {value!r}.")


POSITIONAL = {"positional": "yes"}
"""Metadata of a field that the command line takes without a name: one value, or for a field of type
list any number of them."""
