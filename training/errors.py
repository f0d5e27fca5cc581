"""Errors that a person can do something about; the command line prints them without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that is well-formed but makes no sense; the message says what is allowed."""


class TrainingDiverged(RuntimeError):
    """The loss is not finite any more."""
