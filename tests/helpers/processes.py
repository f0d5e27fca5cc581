"""Processes that a test starts: waited for without a deadline, and gone when the test is.

A busy machine must fail no test, so none has a deadline of its own: it waits for what is to happen,
or for the end of the process that should have done it. What hangs is ended by pytest's limit for
every test. Where that ends pytest itself, nothing is cleaned up; Linux then kills the processes
that have asked for it (`with_parent`).

As a program, ``python tests/helpers/processes.py COMMAND ...`` is COMMAND, ended with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def with_parent(command: Sequence[str | Path]) -> list[str | Path]:
    """Return the command of the same process (its id, too) that ends with its parent."""
    return [sys.executable, "-S", __file__, *command]


@contextlib.contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen]:
    """Start a process in a group of its own, which is killed at the end of the block."""
    with subprocess.Popen(with_parent(command), start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait for a condition, as long as the process runs that is to bring it about.

    Raises:
        AssertionError: if the process ended first; the message has what it wrote to pipes.
    """
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            _kill_group(process)  # who still has its pipes
            written = [pipe.read() for pipe in (process.stdout, process.stderr) if pipe]
            raise AssertionError(f"it ended with status {process.returncode}: {written}")
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process of any parent has ended; one that nobody has waited for yet has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def members(session: int) -> list[int]:
    """Return the processes of a session that have not ended: that of `started`, its children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    die_with_parent()
    # Not as the run of the tests may have it: a shell's background jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
