"""What SIGTERM and SIGINT do: nothing is left half done, and no process is left behind."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.engine.distributed import Processes  # imports torch

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# On a GPU the CPU runs ahead of the device; asking the other processes every step would end that.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 10}


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit inside, so that what was started is ended on the way out."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Notes SIGTERM and SIGINT while its context is open; a second SIGINT interrupts at once.

    Schedulers send SIGTERM some seconds before they kill; a person presses Ctrl-C. The loop asks
    between steps whether one came, saves, and raises `training.errors.TrainingStopped`.

    Outside the main thread Python allows no handlers: there, signals do what they did before.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, processes: Processes, step: int, device: str) -> int:
        """Return the signal that any process received, 0 for none; the same on all processes.

        Args:
            processes: All of them call this after the same step.
            step: Number of steps done; processes ask each other only after some of them.
            device: Type of the device that trains.
        """
        if processes.world_size == 1:
            return self.received
        if step % STEPS_BETWEEN_CHECKS.get(device, 1) != 0:
            return 0
        return processes.maximum(self.received)
