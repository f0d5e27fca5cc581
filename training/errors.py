"""Errors that a person can do something about; the command line prints them without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that is well-formed but makes no sense; the message says what is allowed."""


class TrainingDiverged(RuntimeError):
    """The loss is not finite any more."""


class TrainingStopped(RuntimeError):
    """A signal asked the run to stop; everything was saved, and ``--resume auto`` continues it.

    Args:
        signal: Number of the signal.
        message: What was saved where.
    """

    def __init__(self, signal: int, message: str) -> None:
        """Keep the signal for the exit status, 128 + signal."""
        super().__init__(message)
        self.signal = signal
