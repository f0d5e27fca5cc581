"""Kernels with one synchronisation or shuffle left out: what a forgotten one would be.

The emulator leaves a call out at run time (``emulator/omission.h``), so one program serves all
mutations. ``Checks`` runs on each what can tell: the checks that reach the call, as found by
running them on the kernels as they are, quickest first, until one fails.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.csrc.emulation import ROOT, EmulationError, Probe

CALL = re.compile(r"__(syncthreads|syncwarp|shfl|any|all|ballot|reduce)\w*\s*\(")


@dataclass(frozen=True)
class Mutation:
    """One call in one file, and what stands in its place: what a lane knows by itself."""

    file: str
    line: int
    call: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.call} -> {self.instead}"

    @property
    def place(self) -> str:
        """Its name in the emulator, such as ``jacobi.cuh:139``."""
        return f"{Path(self.file).name}:{self.line}"


def arguments(text: str, begin: int) -> tuple[list[str], int]:
    """Return the arguments of a call whose parenthesis opens before ``begin``, and its end."""
    depth, start, parts = 1, begin, []
    for at in range(begin, len(text)):
        letter = text[at]
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
        if depth == 0:
            return parts, at + 1
    raise ValueError("a parenthesis is not closed")


def replacement(name: str, parts: list[str]) -> str:
    """Return the expression of one thread: its own value, its own predicate, or nothing."""
    if name.startswith(("__shfl", "__reduce")):
        return f"({parts[1]})"
    if name.startswith(("__any", "__all", "__ballot")):
        return f"int({parts[1]})"
    return f"int({parts[0]})" if "_" in name.removeprefix("__") else "(void)0"


def find(files: Iterable[str], csrc: Path = ROOT / "csrc") -> Iterator[Mutation]:
    """Yield every call in kernel sources, given relative to ``csrc``.

    Raises:
        ValueError: if a line has two calls: the emulator tells them apart by their lines.
    """
    for file in files:
        text = (csrc / file).read_text(encoding="utf-8")
        code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)
        before = 0
        for match in CALL.finditer(code):
            parts, end = arguments(code, match.end())
            line = text.count("\n", 0, match.start()) + 1
            if line == before:
                raise ValueError(f"{file}:{line} has two calls: put them on lines of their own")
            before = line
            call = text[match.start() : end]
            yield Mutation(file, line, call, replacement(match[0].rstrip("( "), parts))


Check = Callable[[Probe], None]


class Checks:
    """Checks of kernels, each a run or few, that raise AssertionError if a result is wrong."""

    def __init__(self, checks: Iterable[Check]) -> None:
        """Take the checks; nothing runs yet."""
        self._checks = list(checks)

    @functools.cached_property
    def reached(self) -> list[tuple[Check, frozenset[str]]]:
        """The checks with the calls that each reaches, quickest first.

        Raises:
            AssertionError: if the kernels as they are do not pass.
        """
        timed = []
        for check in self._checks:
            probe, begin = Probe(), time.perf_counter()
            check(probe)
            timed.append((time.perf_counter() - begin, check, frozenset(probe.reached)))
        timed.sort(key=lambda entry: entry[0])
        return [(check, calls) for _, check, calls in timed]

    def assert_catch(self, mutation: Mutation) -> None:
        """Assert that the kernels without this call fail a check.

        Raises:
            AssertionError: if no check reaches the call, or all those that do pass.
        """
        able = [check for check, calls in self.reached if mutation.place in calls]
        assert able, f"no check reaches {mutation}"
        for check in able:
            try:
                check(Probe(omit=mutation.place))
            except (EmulationError, AssertionError):
                return
        raise AssertionError(f"{mutation} survives: {len(able)} checks reach it, and all pass")
