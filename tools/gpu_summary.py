"""Prints what tools/gpu_check.sh left in a folder: python tools/gpu_summary.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree


def tests(path: Path) -> str:
    """Return how many tests passed."""
    suite = ElementTree.parse(path).find("testsuite")
    assert suite is not None
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return f"{total - failed - skipped} passed, {failed} failed, {skipped} skipped"


def times(results: dict) -> list[str]:
    """Return the table of microseconds, and the targets that were missed."""
    lines = [f"{results['device']}, torch {results['torch']}: microseconds, forward + backward"]
    for scene, found in results["scenes"].items():
        cells = []
        for name, entry in found.items():
            graph = f" (graph {entry['graph_us']:.0f})" if "graph_us" in entry else ""
            cells.append(f"{name} {entry['eager_us']:.0f}{graph}")
        lines.append(f"  {scene:<24}" + ", ".join(cells))
    lines += [f"  not measured: {n}: {why}" for n, why in results.get("not_measured", {}).items()]
    lines += stage_times(results.get("stages", {}))
    step = results.get("training_step_us")
    if step:
        lines.append(f"  ResNet-32 step: {step['without']:.0f}, with whitening {step['with']:.0f}")
    if "missed" in results:
        lines += [f"  missed: {text}" for text in results["missed"]] or ["  every target reached"]
    return lines


def stage_times(scenes: dict) -> list[str]:
    """Return every stage with CUDA C++, Triton and plain PyTorch side by side; ratios last."""
    lines = []
    for scene, stages in scenes.items():
        lines.append(f"  stages of {scene}: microseconds, in a CUDA graph where it can be one")
        for stage, found in stages.items():
            best = {name: min(ways.values()) for name, ways in found.items()}
            cells = ", ".join(f"{name} {value:.1f}" for name, value in best.items())
            if "native" in best and "triton" in best:
                cells += f"; triton / native {best['triton'] / best['native']:.2f}"
            lines.append(f"    {stage:<18}{cells}")
    return lines


def main(folder: Path) -> None:
    """Print a line per part, then the times."""
    for part in ("build", "tests", "sanitizer", "benchmarks"):
        state = "passed" if (folder / f"{part}.done").exists() else "not passed"
        print(f"{part:<11}{state}")
    if (folder / "tests.xml").exists():
        print("tests      " + tests(folder / "tests.xml"))
    if (folder / "benchmarks.json").exists():
        print("\n".join(times(json.loads((folder / "benchmarks.json").read_text()))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
