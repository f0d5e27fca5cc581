"""``python -m training`` for test_ablate.py, with something to happen after the first epoch.

stopping_runs.py kill -m training ...      is killed as soon as the first epoch is saved
stopping_runs.py FILE PID -m training ...  then waits for a file, or the end of process PID
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import training.commands.train
from tests.helpers.processes import is_gone
from training.cli import run

save = training.commands.train.Run.save


def save_and_stop(self: training.commands.train.Run, best: bool = False) -> None:
    """Save, then do what is asked for."""
    save(self, best)
    if FILE is None:
        os.kill(os.getpid(), signal.SIGKILL)
    while not FILE.exists() and not is_gone(PID):
        time.sleep(0.005)


if __name__ == "__main__":
    at = sys.argv.index("-m")
    FILE = None if sys.argv[1] == "kill" else Path(sys.argv[1])
    PID = int(sys.argv[at - 1]) if FILE else 0
    training.commands.train.Run.save = save_and_stop
    sys.exit(run(sys.argv[at + 2 :]))
