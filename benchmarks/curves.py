"""Forward + backward over channels, rows, groups and threads, as a picture.

    python -m benchmarks.curves          measures, and writes curves.json and curves.svg
    python -m benchmarks.curves --draw   draws what is saved of this machine again

Both lie beside the machine's scenes.json (benchmarks/report.py). Points are measured as the scenes
of bench_whiten.py are; a curve ends where a call takes longer than two seconds, ours at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from . import bench_whiten, machine, report
from .scenes import SCENES, Scene

LINES = {"eager": "C7", "cholesky": "C1", "kornia": "C4", "closed-form": "C2", "fused": "C0"}
LONGEST = 2.0


def _rows(n: int, channels: int, groups: int = 1) -> Scene:
    return Scene(f"({n}, {channels})", (n, channels), groups, 1.0)


def axes() -> dict[str, dict[int, Scene]]:
    """Return by axis the scene of every point."""
    cores = torch.get_num_threads()
    threads = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < cores] + [cores]
    return {
        "channels, 512 rows": {2**k: _rows(512, 2**k) for k in range(4, 13)},
        "rows, 256 channels": {2**k: _rows(2**k, 256) for k in range(4, 15)},
        "groups of (512, 512)": {2**k: _rows(512, 512, 2**k) for k in range(7)},
        "threads, map (64, 64, 32, 32)": {n: SCENES[-1] for n in threads},
    }


def measure() -> dict[str, Any]:
    """Return the machine and, by axis and point, everybody's median seconds, and the floor's."""
    facts, ceilings = machine.facts(), machine.ceilings("cpu")
    found: dict[str, dict[str, dict[str, float]]] = {}
    whole = torch.get_num_threads()
    for axis, points in axes().items():
        names = list(LINES)
        for at, scene in points.items():
            torch.set_num_threads(at if axis.startswith("threads") else whole)
            providers = bench_whiten.compare(scene, "both", "cpu", names)
            for name, entry in providers.items():
                if "ratio" not in entry:
                    print(f"{axis} {at}: {name}: {entry.get('absent') or entry['failed']}")
            seconds = {n: e["seconds"][0] for n, e in providers.items() if "seconds" in e}
            names = [n for n in names if n == "fused" or seconds.get(n, 0.0) < LONGEST]
            seconds["floor"] = report.floor_of(scene, ceilings)[0]
            found.setdefault(axis, {})[str(at)] = seconds
            print(axis, at, {n: f"{1e3 * s:.3g} ms" for n, s in seconds.items()}, flush=True)
    torch.set_num_threads(whole)
    return {"machine": {**facts, "kernels": None, "ceilings": ceilings}, "axes": found}


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture; the same figures give the same file."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "fastwhiten", "svg.fonttype": "none"})
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    for panel, (axis, points) in zip(
        figure.subplots(2, 2).flat, found["axes"].items(), strict=True
    ):
        for name, colour in {**LINES, "floor": "black"}.items():
            line = [
                (int(at), 1e3 * values[name]) for at, values in points.items() if name in values
            ]
            # One machine's floor is that of all its threads.
            if line and not (name == "floor" and axis.startswith("threads")):
                style = "--" if name == "floor" else ".-"
                panel.plot(*zip(*line, strict=True), style, color=colour, label=name)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms")
        panel.set_xticks([int(at) for at in points], [*points], rotation=45, minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    whose = figure.axes[0].get_legend_handles_labels()
    figure.legend(*whose, loc="outside lower center", ncols=len(LINES) + 1)
    figure.suptitle(f"forward + backward, float32: {report.describe(found['machine'])}")
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    """Measure and draw, or draw alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    folder = report.RESULTS / report.slug(machine.facts())
    saved = folder / "curves.json"
    if not options.draw:
        found = measure()
        folder.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(found, indent=1) + "\n")
    draw(json.loads(saved.read_text()), folder / "curves.svg")


if __name__ == "__main__":
    main()
