"""``python -m training`` for test_ends.py: a signal for its process group in the middle of it.

signalled.py SIGNALS MODULE CLASS METHOD -m training ...  sends each of the signals, by number and
joined by commas, whenever the method is called
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from training.cli import run

if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[1].split(",")]
    owner = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
    method = getattr(owner, sys.argv[4])

    def signalled(*arguments: Any, **options: Any) -> Any:
        """Send the signals, then do what the method does."""
        for number in numbers:
            os.killpg(0, number)
        return method(*arguments, **options)

    setattr(owner, sys.argv[4], signalled)
    sys.exit(run(sys.argv[7:]))
