"""Kernels with one synchronisation or shuffle removed: what a forgotten one would be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.csrc.emulation import ROOT

CALL = re.compile(r"__(syncthreads|syncwarp|shfl|any|all|ballot)\w*\s*\(")


@dataclass(frozen=True)
class Mutation:
    """One call in one file, and what stands in its place: what a lane knows by itself."""

    file: str
    begin: int
    end: int
    line: int
    call: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.call} -> {self.instead}"


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
    if name.startswith("__shfl"):
        return f"({parts[1]})"
    if name.startswith(("__any", "__all", "__ballot")):
        return f"int({parts[1]})"
    return f"int({parts[0]})" if "_" in name.removeprefix("__") else "(void)0"


def find(files: Iterable[str], csrc: Path = ROOT / "csrc") -> Iterator[Mutation]:
    """Yield every call in kernel sources, given relative to ``csrc``."""
    for file in files:
        text = (csrc / file).read_text(encoding="utf-8")
        code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)
        for match in CALL.finditer(code):
            parts, end = arguments(code, match.end())
            name = match[0].rstrip("( ")
            line = text.count("\n", 0, match.start()) + 1
            call = text[match.start() : end]
            yield Mutation(file, match.start(), end, line, call, replacement(name, parts))


def apply(mutation: Mutation, folder: Path, csrc: Path = ROOT / "csrc") -> Path:
    """Copy the kernels and the emulator to ``folder`` with the mutation made; return the copy."""
    target = folder / "csrc"
    shutil.copytree(csrc, target, dirs_exist_ok=True)
    path = target / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: mutation.begin] + mutation.instead + text[mutation.end :])
    return target
