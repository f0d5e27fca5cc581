"""Stopping on SIGTERM and SIGINT between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from training.distributed import Processes

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# On a GPU the CPU runs ahead of the device; asking the other processes every step would end that.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 10}


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
