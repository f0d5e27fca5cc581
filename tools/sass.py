"""From what nvdisasm prints to what tests/csrc/machine/ runs.

An instruction of sm_70 and later has 128 bits. Bits 105 to 125 tell the scheduler what to do: how
many cycles the warp stalls, which of six scoreboards the instruction counts up until its result is
there (write) or its operands are read (read), and which of them it waits for. nvdisasm prints them
in hexadecimal only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Control(NamedTuple):
    """What the scheduler is told: cycles to stall, scoreboards (7 for none), a mask of waits."""

    stall: int
    write: int
    read: int
    wait: int

    @classmethod
    def decode(cls, high: int) -> Control:
        """Read the upper 64 bits of an encoding.

        >>> Control.decode(0x000FCA0000011649)  # five cycles, waits for nothing
        Control(stall=5, write=7, read=7, wait=0)
        """
        bits = high >> 41
        return cls(bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


class Operand(NamedTuple):
    """One operand: its kind (a letter), what `kind` needs, and a mask of FLAGS."""

    kind: str
    index: int = 0
    flags: int = 0
    value: int = 0
    extra: int = 0


class Instruction(NamedTuple):
    """One instruction of a kernel."""

    address: int
    guard: int  # predicate, 7 always true; + 8: of the uniform ones, + 16: negated
    name: str
    operands: tuple[Operand, ...]
    control: Control
    line: str = ""  # of the source


class Kernel(NamedTuple):
    """A kernel: its mangled name, registers of a thread, bytes of static shared memory, code."""

    name: str
    registers: int
    shared: int
    code: list[Instruction]


NEGATIVE, ABSOLUTE, INVERTED, NOT, WIDE, UPPER, LOWER = (1 << i for i in range(7))
ZERO_REGISTER, ZERO_UNIFORM, TRUE = 255, 63, 7
# In the order of csrc/machine's Special.
SPECIAL = (
    *(f"SR_TID.{d}" for d in "XYZ"),
    *(f"SR_CTAID.{d}" for d in "XYZ"),
    "SR_LANEID",
    "SR_CgaCtaId",
    "SR_CLOCKLO",
    "SRZ",
    "SR_LEMASK",
    "SR_LTMASK",
    "SR_GEMASK",
    "SR_GTMASK",
    "SR_EQMASK",
)
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s+/\* 0x([0-9a-f]{16}) \*/")
_SECOND = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\S+):\s*$")
_SOURCE = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
_MEMORY = re.compile(r"^\[(.*)\]$")


def parse(text: str) -> dict[str, list[Instruction]]:
    """Return kernel -> code from what nvdisasm printed."""
    kernels: dict[str, list[Instruction]] = {}
    for name, lines in _sections(text):
        raw, labels = _read(lines)
        kernels[name] = [
            decode(address, shown, Control.decode(high), labels, line)
            for address, shown, high, line in raw
        ]
    return kernels


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in text.splitlines():
        if match := re.match(r"^\s*\.section\s+\.text\.([^,\s]+)", line):
            if name:
                yield name, lines
            name, lines = match[1], []
        elif re.match(r"^\s*\.section\s", line):
            if name:
                yield name, lines
            name = ""
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def _read(lines: list[str]) -> tuple[list[tuple[int, str, int, str]], dict[str, int]]:
    raw, labels = list[tuple[int, str, int, str]](), dict[str, int]()
    pending, waiting, source = list[str](), None, ""
    for line in lines:
        if match := _LINE.match(line):
            waiting = (int(match[1], 16), match[2])
            for label in pending:
                labels[label] = waiting[0]
            pending = []
        elif (match := _SECOND.match(line)) and waiting is not None:
            raw.append((*waiting, int(match[1], 16), source))
            waiting = None
        elif match := _SOURCE.match(line):
            source = f"{Path(match[1]).name}:{match[2]}"
        elif match := _LABEL.match(line):
            pending.append(match[1])
    return raw, labels


def decode(
    address: int, shown: str, control: Control, labels: dict[str, int], line: str = ""
) -> Instruction:
    """Return one instruction from its text, such as "@!P0 IADD3 R2, R2, -0x1, RZ"."""
    guard = TRUE
    if match := re.match(r"^@(!?)(U?)P(\d|T)\s+", shown):
        guard = (TRUE if match[3] == "T" else int(match[3])) + 8 * bool(match[2])
        guard += 16 * bool(match[1])
        shown = shown[match.end() :]
    name, _, rest = shown.partition(" ")
    texts = [text.strip() for text in re.split(r",(?![^\[]*\])", rest) if text.strip()]
    if name.startswith("RET."):
        texts = texts[0].split()[:1]
    operands = [operand(name, text, labels) for text in texts]
    if name[0] == "H":  # two immediate halves are one operand
        for i in range(len(operands) - 1, 0, -1):
            if operands[i - 1].kind == operands[i].kind == "i":
                both = operands[i - 1].value << 16 | operands.pop(i).value
                operands[i - 1] = operands[i - 1]._replace(value=both)
    return Instruction(address, guard, name, tuple(operands), control, line)


def operand(name: str, text: str, labels: dict[str, int]) -> Operand:
    """Return an operand of the instruction `name`.

    Raises:
        ValueError: it is none that is known.
    """
    flags = 0
    text = text.replace(".reuse", "")
    if text.startswith("`("):
        return Operand("l", 0, 0, labels[text[2:-1]])
    if match := re.match(r"^desc\[UR\d+\](.*)$", text):
        text = match[1]
    if match := _MEMORY.match(text):
        return _memory(match[1])
    if match := re.match(r"^(-?)(\|?)c\[(0x[0-9a-f]+)\]\[(.*)\]\|?(\.64)?$", text):
        inner = _memory(match[4])
        flags = (NEGATIVE if match[1] else 0) | (ABSOLUTE if match[2] else 0)
        return inner._replace(kind="c", flags=flags, extra=64 * int(match[3], 16) + inner.extra)
    for mark, flag in (("!", NOT), ("-", NEGATIVE), ("~", INVERTED)):
        if text.startswith(mark) and re.match(r"^.[|A-Z~]", text) and text[1:] not in _WORDS:
            text, flags = text[1:], flags | flag
    if text.startswith("|"):
        text, flags = text.replace("|", ""), flags | ABSOLUTE
    for ending, flag in ((".H1_H1", UPPER), (".H0_H0", LOWER), (".64", WIDE), (".F32", 0)):
        if text.endswith(ending):
            text, flags = text.removesuffix(ending), flags | flag
    return _plain(name, text, flags)


_WORDS = {"INF": 0x7F800000, "QNAN": 0x7FFFFFFF, "SNAN": 0x7F800001}
_KINDS = {"R": "r", "UR": "u", "P": "p", "UP": "q", "B": "b", "SB": "d"}


def _plain(name: str, text: str, flags: int) -> Operand:
    fixed = {
        "RZ": ("r", ZERO_REGISTER),
        "URZ": ("u", ZERO_UNIFORM),
        "PT": ("p", TRUE),
        "UPT": ("q", TRUE),
        "PR": ("x", 0),
        "UPR": ("x", 1),
    }
    if text in fixed:
        return Operand(*fixed[text], flags)
    if match := re.fullmatch(r"(R|UR|P|UP|B|SB)(\d+)", text):
        return Operand(_KINDS[match[1]], int(match[2]), flags)
    if text.startswith("SR"):
        return Operand("s", SPECIAL.index(text) if text in SPECIAL else 99, flags)
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return Operand("i", 0, flags, int(text, 16) & 0xFFFFFFFF)
    return Operand("i", 0, flags, literal(name, text))


def literal(name: str, text: str) -> int:
    """Return the 32 bits of a floating-point literal: of a double its upper half.

    >>> hex(literal("FADD", "-0.5")), hex(literal("DADD", "1")), hex(literal("HFMA2.MMA", "1.875"))
    ('0xbf000000', '0x3ff00000', '0x3f80')
    """
    sign, word = (0x80000000, text[1:]) if text[0] == "-" else (0, text.removeprefix("+"))
    if word in _WORDS:
        value = float("inf") if word == "INF" else float("nan")
    else:
        value = float(word)
    value = -value if sign else value
    if name[0] == "D" or ".F64" in name:
        return struct.unpack("<Q", struct.pack("<d", value))[0] >> 32
    if name[0] == "H" and "BF16" not in name:
        return struct.unpack("<H", struct.pack("<e", value))[0]
    if word in _WORDS:
        number = _WORDS[word] | sign
    else:
        number = struct.unpack("<I", struct.pack("<f", value))[0]
    return number >> 16 if name[0] == "H" else number


def _memory(inner: str) -> Operand:
    register, flags, offset, uniform = ZERO_REGISTER, 0, 0, ZERO_UNIFORM
    for part in inner.replace("+-", "+!").split("+"):
        part = part.strip()
        if match := re.fullmatch(r"R(Z|\d+)(\.64|\.U32|\.X4|\.X8|\.X16)*", part):
            register = ZERO_REGISTER if match[1] == "Z" else int(match[1])
            flags |= WIDE if ".64" in part else 0
            if ".X" in part:
                raise ValueError(f"expected an address without a factor, got [{inner}]")
        elif match := re.fullmatch(r"UR(Z|\d+)(\.64)?", part):
            uniform = ZERO_UNIFORM if match[1] == "Z" else int(match[1])
        elif match := re.fullmatch(r"(!?)(0x[0-9a-f]+)", part):
            offset = int(match[2], 16) * (-1 if match[1] else 1)
        else:
            raise ValueError(f"expected registers and a number, got [{inner}]")
    return Operand("m", register, flags, offset, uniform)


def program(kernels: Iterable[Kernel]) -> str:
    """Return the text that tests/csrc/machine/program.h reads."""
    lines = []
    for kernel in kernels:
        lines.append(f"kernel {kernel.name} {kernel.registers} {kernel.shared} {len(kernel.code)}")
        for i in kernel.code:
            c = i.control
            head = f"{i.address} {i.guard} {i.name} {c.stall} {c.write} {c.read} {c.wait}"
            operands = " ".join(
                f"{o.kind} {o.index} {o.flags} {o.value} {o.extra}" for o in i.operands
            )
            lines.append(f"{head} {i.line or '-'} {len(i.operands)} {operands}".rstrip())
    return "\n".join(lines) + "\n"
