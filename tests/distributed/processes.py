"""A pool of processes in one gloo group, which run functions of a test and return their results."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Seconds; a case takes milliseconds (compiling: seconds), and a hang must fail. Where one process
# raised, the others wait for the group's time: they answer before the pool's is over.
GROUP_TIMEOUT, TIMEOUT = 60.0, 100.0

# In a process of the pool: the group of that many processes. The last rank is outside of the
# smaller one, and has PyTorch's placeholder there.
groups: dict[int, Any] = {}


def collectives(size: int) -> int:
    """How many collectives the group of ``size`` processes has run so far, by its own count."""
    group = dist.group.WORLD if groups[size] == "world" else groups[size]
    return int(group._get_sequence_number_for_group())


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Join the group, then answer requests ``(function, args)`` until the pipe closes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=GROUP_TIMEOUT),
    )
    groups[size] = "world"
    groups[size - 1] = dist.new_group(list(range(size - 1)))
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # the pool was closed
            return
        try:
            torch.manual_seed(0)
            answer = (True, function(rank, *args))
        except Exception:
            answer = (False, traceback.format_exc())
        with contextlib.suppress(OSError):
            pipe.send_bytes(pickle.dumps(answer))


class Processes:
    """``size`` processes, ranks 0 ... size - 1 of the default group."""

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.size, self.alive = size, True
        self.pipes, self.workers = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_serve, args=(rank, size, str(folder / "store"), theirs), daemon=True
            )
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return ``function(rank, *args)`` of every rank. An exception or a hang fails the test.

        ``function`` is found by its name, what it takes and returns is pickled.
        """
        assert self.alive, "an earlier test hung: its processes were stopped"
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        deadline = time.monotonic() + TIMEOUT
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise AssertionError(f"rank {rank} did not answer in {TIMEOUT} s: it hangs")
            results.append(pickle.loads(pipe.recv_bytes()))
        for rank, (worked, value) in enumerate(results):
            assert worked, f"rank {rank} raised:\n{value}"
        return [value for _, value in results]

    def close(self) -> None:
        """End the processes: they hold nothing that is worth an orderly end."""
        self.alive = False
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            worker.kill()
            worker.join()
