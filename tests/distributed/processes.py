"""A pool of processes in one gloo group, which run functions of a test and return their results."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.processes import die_with_parent

# A backstop alone: where one process raises, the others are ended with it.
GROUP_TIMEOUT = timedelta(minutes=10)

# In a process of the pool: the group of that many processes. The last rank is outside of the
# smaller one, and has PyTorch's placeholder there.
groups: dict[int, Any] = {}


def collectives(size: int) -> int:
    """How many collectives the group of ``size`` processes has run so far, by its own count."""
    group = dist.group.WORLD if groups[size] == "world" else groups[size]
    return int(group._get_sequence_number_for_group())


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Join the group, then answer requests ``(function, args)`` until the pipe closes."""
    die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=GROUP_TIMEOUT,
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
        self.size, self.folder, self.generation = size, folder, 0
        self.pipes: list[Connection] = []
        self.workers: list[BaseProcess] = []

    def start(self) -> None:
        """Start the processes; they join one group."""
        context = multiprocessing.get_context("spawn")
        self.generation += 1
        store = str(self.folder / f"store-{self.generation}")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_serve, args=(rank, self.size, store, theirs), daemon=True
            )
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return ``function(rank, *args)`` of every rank.

        An exception, or the end of a process, fails the test at once: all processes are ended, as
        the others may wait for that one, and started anew for the next test. So does a hang, as
        soon as pytest's limit ends the test.

        ``function`` is found by its name, what it takes and returns is pickled.
        """
        if not self.workers:
            self.start()
        try:
            for pipe in self.pipes:
                pipe.send_bytes(pickle.dumps((function, args)))
            return self._answers()
        except BaseException:
            self.close()
            raise

    def _answers(self) -> list[Any]:
        """Wait for all answers, without a deadline."""
        results: dict[int, Any] = {}
        while len(results) < self.size:
            waiting = {self.pipes[r]: r for r in range(self.size) if r not in results}
            # The pipe of a process that has ended is ready, too.
            for pipe in multiprocessing.connection.wait(list(waiting)):
                rank = waiting[pipe]
                try:
                    worked, results[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    self.workers[rank].join()
                    status = self.workers[rank].exitcode
                    raise AssertionError(f"rank {rank} ended with status {status}") from None
                ended = [r for r in range(self.size) if self.workers[r].exitcode is not None]
                assert worked, f"rank {rank} raised, ended have {ended}:\n{results[rank]}"
        return [results[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes: they hold nothing that is worth an orderly end."""
        for worker in self.workers:
            worker.kill()
            worker.join()
        for pipe in self.pipes:
            pipe.close()
        self.pipes, self.workers = [], []
