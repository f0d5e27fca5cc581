"""Prints what tools/gpu_check.sh left in a folder: python tools/gpu_summary.py FOLDER.

Whoever is missing or failed is named, with the reason where one is known. The exit status is 0 if
all parts have passed, everybody was measured and every target was reached, else 1. Of a dry run,
the times say nothing: targets are shown, not judged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_targets import Measured, best, verdicts

PARTS_FILE, TESTS_FILE = "parts.json", "tests.xml"
BENCHMARKS_FILE, SUMMARY_FILE = "benchmarks.json", "summary.txt"
PARTS = ("build", "tests", "benchmarks", "memcheck", "racecheck", "synccheck")
# (section, title, whose time is divided by whose at the end of a line)
SECTIONS = (
    ("whole", "forward + backward", ("eager", "fused")),
    ("eigensolvers", "eigensolvers", ("library", "native")),
    ("training step", "training step", ("with", "without")),
    ("products", "products of wide inputs, ours beside cuBLAS", ("ours", "library")),
    ("stages", "stages, CUDA C++ (native) beside Triton", ("triton", "native")),
)


class Summary:
    """Lines to print, and what is wrong."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lines: list[str] = []
        self.problems: list[str] = []

    def add(self, line: str, problem: str | None = None) -> None:
        """Add a line, and what it means for the verdict."""
        self.lines.append(line)
        if problem is not None:
            self.problems.append(problem)


def read(path: Path) -> dict[str, Any] | None:
    """Return the JSON in a file, None if there is none or it is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def parts(summary: Summary, folder: Path) -> bool:
    """Add a line per part; return whether this was a dry run."""
    found = read(folder / PARTS_FILE) or {}
    entries = found.get("parts", {})
    for name in PARTS:
        entry = entries.get(name)
        if entry is None:
            summary.add(f"{name:<11}NOT RUN", f"{name} was not run")
            continue
        state = entry["state"]
        if state == "running":
            state = "cut off while it ran"
        elif state == "passed" and entry["sources"] != found.get("sources"):
            state = "passed with other sources: run it again"
        if state == "passed":
            summary.add(f"{name:<11}passed ({entry['seconds']:.0f} s)")
        else:
            summary.add(f"{name:<11}NOT PASSED: {state}; see {entry['log']}", f"{name}: {state}")
    return bool(found.get("dry_run"))


def tests(summary: Summary, path: Path) -> None:
    """Add how many tests passed, who failed and why tests were skipped."""
    try:
        suite = ElementTree.parse(path).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        suite = None
    if suite is None:
        summary.add("tests      no results", "no test results")
        return
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    passed = total - failed - skipped
    summary.add(f"tests      {passed} passed, {failed} failed, {skipped} skipped")
    if failed or not passed:
        summary.problems.append(f"{failed} tests failed" if failed else "no test passed")
    reasons: dict[str, int] = {}
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            summary.add(f"  FAILED {case.get('classname')}::{case.get('name')}")
        note = case.find("skipped")
        if note is not None:
            text = note.get("message", "no reason given").splitlines()[0]
            reasons[text] = reasons.get(text, 0) + 1
    for reason, count in reasons.items():
        summary.add(f"  skipped {count}: {reason}")


def cell(found: Mapping[str, Any] | None, name: str) -> str:
    """Return a name's time, or what became of it."""
    if found is None:
        return f"{name} MISSING"
    if "failed" in found:
        return f"{name} FAILED"
    if "not_measured" in found:
        return f"{name} -"
    shown = f"{name} {found['eager_us']:.1f}"
    return f"{shown} (graph {found['graph_us']:.1f})" if "graph_us" in found else shown


def section_lines(summary: Summary, results: Mapping[str, Any], dry: bool) -> None:
    """Add every case that was to be measured, with everybody who was to be."""
    measured: Measured = results.get("measured", {})
    reasons: dict[str, list[str]] = {}
    for section, title, (above, below) in SECTIONS:
        expected = results.get("expected", {}).get(section, {})
        summary.add(f"{title}: microseconds" if expected else f"{title}: MISSING")
        if not expected:
            summary.problems.append(f"{title}: no case was to be measured")
        for case, names in expected.items():
            found = measured.get(section, {}).get(case, {})
            line = f"  {case}: " + ", ".join(cell(found.get(name), name) for name in names)
            timed = [n for n in (above, below) if "eager_us" in found.get(n, {})]
            if len(timed) == 2:
                line += f"; {above} / {below} {best(found[above]) / best(found[below]):.2f}"
            operations = found.get("ours", {}).get("operations")
            if operations and len(timed) == 2:
                rates = (f"{1e-6 * operations / best(found[n]):.1f}" for n in timed)
                line += f", {' and '.join(rates)} TFLOP/s"
            summary.add(line)
            for name in names:
                note(summary, reasons, f"{section}: {case}: {name}", found.get(name), dry)
    for reason, whose in reasons.items():
        shown = ", ".join(whose[:4]) + (f" and {len(whose) - 4} more" if len(whose) > 4 else "")
        summary.add(f"  not measured ({reason}): {shown}")


def note(
    summary: Summary,
    reasons: dict[str, list[str]],
    place: str,
    found: Mapping[str, Any] | None,
    dry: bool,
) -> None:
    """Keep why there is no time in a place; a dry run may lack who needs a GPU."""
    if found is None:
        summary.problems.append(f"{place}: missing")
    elif "failed" in found:
        summary.add(f"    {place} FAILED: {found['failed']}", f"{place}: failed")
    elif "not_measured" in found:
        reasons.setdefault(found["not_measured"], []).append(place)
        if not dry and not found.get("by_design"):
            summary.problems.append(f"{place}: not measured")


def targets(summary: Summary, results: Mapping[str, Any], dry: bool) -> None:
    """Add every target with what was measured; those of a dry run are not judged."""
    machine = results.get("machine", {})
    summary.add(f"targets of an H100, measured on: {machine.get('device')}")
    for verdict in verdicts(results.get("measured", {})):
        if dry:
            mark = "not judged"
        elif verdict.held is None:
            mark = "NOT COMPARED"
        else:
            mark = "reached" if verdict.held else "MISSED"
        problem = None if mark in ("reached", "not judged") else f"{mark.lower()}: {verdict.text}"
        summary.add(f"  {mark:<13}{verdict.text}: {verdict.shown}", problem)


def summarize(folder: Path) -> Summary:
    """Return the whole summary of a folder."""
    summary = Summary()
    dry = parts(summary, folder)
    tests(summary, folder / TESTS_FILE)
    results = read(folder / BENCHMARKS_FILE)
    if results is None:
        summary.add("benchmarks no results", "no benchmark results")
    else:
        machine = results.get("machine", {})
        summary.add(
            f"{machine.get('device')}, torch {machine.get('torch')}, CUDA {machine.get('cuda')}, "
            f"Triton {machine.get('triton')}"
        )
        dry = dry or bool(results.get("dry_run"))
        section_lines(summary, results, dry)
        targets(summary, results, dry)
    return summary


def main(folder: Path) -> int:
    """Print the summary and keep it in the folder; return the exit status."""
    summary = summarize(folder)
    if summary.problems:
        first = "; ".join(summary.problems[:8])
        more = len(summary.problems) - 8
        summary.add(f"NOT GOOD: {first}" + (f"; and {more} more" if more > 0 else ""))
    else:
        summary.add("all good")
    text = "\n".join(summary.lines)
    print(text, flush=True)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return 1 if summary.problems else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument: the folder that tools/gpu_check.sh wrote to")
    sys.exit(main(Path(sys.argv[1])))
