"""Tables made from benchmark results.

``python -m benchmarks.report benchmarks/results/<file>.json`` prints the speed table of a saved run
as markdown; ``--readme README.md`` writes it between the README's markers, and ``--save FILE``
keeps what ``--benchmark-json`` wrote without its raw samples, for benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .gpu_timing import best
from .scenes import SCENES, Scene

BEGIN, END = (
    "<!-- speed table: made by python -m benchmarks.report -->",
    "<!-- end of speed table -->",
)
ORDER = (
    "eager",
    "compiled",
    "closed-form",
    "cholesky",
    "iternorm",
    "batchnorm",
    "fused",
    "triton",
)


def collect(benchmarks: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return ``{(scene, mode, provider): extra_info plus median seconds and spread}``.

    The median is by the device's clock where it was read.
    """
    found = {}
    for bench in benchmarks:
        info = bench["extra_info"]
        if "provider" in info:
            key = (info["scene"], info["mode"], info["provider"])
            stats = bench["stats"]
            found[key] = {**info, "median": stats["median"], "iqr": stats["iqr"]}
            if "eager_us" in info:
                found[key]["median"] = 1e-6 * best(info)
    return found


def floor_of(scene: Scene, ceilings: Mapping[str, Any]) -> tuple[float, str]:
    """Return the seconds that forward + backward cannot go below here, and what takes most of them.

    The eigensolve is serial to the matrix products; products and memory traffic overlap, so the
    larger one counts.
    """
    eigensolve = float(ceilings["eigh"].get(f"{scene.groups}x{scene.eigen_size}", 0.0))
    products = scene.flops() / ceilings["flops_per_second"]
    traffic = scene.bytes() / ceilings["bytes_per_second"]
    parts = {"eigensolve": eigensolve, "GEMM": products, "memory": traffic}
    return eigensolve + max(products, traffic), max(parts, key=lambda name: parts[name])


def speed_table(
    results: Mapping[tuple[str, str, str], Mapping[str, Any]], ceilings: Mapping[str, Any]
) -> str:
    """Return the ratios of eager's median to each provider's, forward + backward, in markdown."""
    providers = [p for p in ORDER if any(key[2] == p for key in results) and p != "eager"]
    head = [
        "(N, C)",
        "target",
        *providers,
        "fused / floor",
        "bound by",
        "error",
        "gradient error",
        "peak, inputs",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for scene in SCENES:
        row = {p: results.get((scene.name, "both", p)) for p in ORDER}
        eager, fused = row["eager"], row["fused"]
        if eager is None or fused is None:
            continue
        floor, bound = floor_of(scene, ceilings)
        cells = [scene.name, f"{scene.target:g}"]
        for provider in providers:
            entry = row[provider]
            cells.append("" if entry is None else f"{eager['median'] / entry['median']:.2f}")
        cells += [f"{fused['median'] / floor:.2f}", bound]
        cells += [f"{fused['error']:.1e}", f"{fused['grad_error']:.1e}"]
        peaks = [row[p].get("peak_inputs") if row[p] else None for p in ("fused", "eager")]
        cells.append(" vs eager ".join("?" if p is None else f"{p:.1f}" for p in peaks))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def few_rows_table(benchmarks: Iterable[Mapping[str, Any]]) -> str:
    """Return the outputs' deviations in training and in evaluation, in markdown; "" for none."""
    infos = [bench["extra_info"] for bench in benchmarks if "evaluation" in bench["extra_info"]]
    lines = ["| options | training | evaluation |", "| --- | --- | --- |"]
    for found in infos:
        lines.append(
            f"| {found['options']} | {found['training']:.2f} | {found['evaluation']:.2f} |"
        )
    return "\n".join(lines) if infos else ""


def device_table(benchmarks: Iterable[Mapping[str, Any]]) -> str:
    """Return a line for every group that was timed by a GPU's clock; "" for none."""
    groups: dict[str, list[str]] = {}
    for bench in benchmarks:
        info = bench["extra_info"]
        if "eager_us" in info:
            cell = f"{bench['name'].partition('[')[2][:-1]} {info['eager_us']:.1f}"
            cell += f" (graph {info['graph_us']:.1f})" if "graph_us" in info else ""
            if "operations" in info:
                cell += f" = {1e-6 * info['operations'] / best(info):.1f} TFLOP/s"
            groups.setdefault(bench["group"], []).append(cell)
    return "\n".join(f"{group}: {', '.join(cells)}" for group, cells in groups.items())


def misses(results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> list[str]:
    """Return a line for every target that this run did not reach."""
    found = []
    for scene in SCENES:
        row = {p: results.get((scene.name, "both", p)) for p in ("eager", "cholesky", "fused")}
        if not all(row.values()):
            continue
        eager, cholesky, fused = (row[p]["median"] for p in ("eager", "cholesky", "fused"))  # type: ignore[index]
        if eager / fused < scene.target:
            ratio = f"{eager / fused:.2f} times faster than eager"
            found.append(f"{scene.name}: {ratio}, target {scene.target:g}")
        if scene.beats_cholesky and fused >= cholesky:
            found.append(f"{scene.name}: {fused / cholesky:.2f} of Cholesky's time, target below 1")
    return found


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return two runs of one machine as one: what was measured again is the new run's."""
    machine = {**old.get("machine_info", {}), **new["machine_info"]}
    benchmarks = {
        bench["fullname"]: bench for run in (old, new) for bench in run.get("benchmarks", ())
    }
    return {**new, "machine_info": machine, "benchmarks": list(benchmarks.values())}


def summarize(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run as it is committed: statistics and versions, no raw samples, no host details."""
    kept = ("python_version", "system", "machine", "fastwhiten", "torch", "threads", "cores")
    perhaps = ("ceilings", "device", "gpu", "cuda", "triton")
    machine = {key: run["machine_info"][key] for key in kept}
    machine |= {key: run["machine_info"][key] for key in perhaps if key in run["machine_info"]}
    machine["processor"] = run["machine_info"]["cpu"].get("brand_raw", "unknown")
    figures = ("min", "median", "iqr", "rounds")
    benchmarks = [
        {
            "name": bench["name"],
            "group": bench["group"],
            "extra_info": bench["extra_info"],
            "stats": {figure: bench["stats"][figure] for figure in figures},
        }
        for bench in run["benchmarks"]
    ]
    return {"machine_info": machine, "datetime": run["datetime"], "benchmarks": benchmarks}


def main() -> None:
    """Print the tables of a saved run, or write them into a README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON written by --benchmark-json")
    parser.add_argument("--save", type=Path, help="also write the run without its raw samples")
    parser.add_argument("--readme", type=Path, help="file whose marked section is replaced")
    arguments = parser.parse_args()
    run = json.loads(arguments.results.read_text())
    # Without them nobody was compared: there are no rows.
    ceilings = run["machine_info"].get("ceilings", {})
    table = speed_table(collect(run["benchmarks"]), ceilings)
    print(table, device_table(run["benchmarks"]), sep="\n\n")
    if arguments.save:
        arguments.save.write_text(json.dumps(summarize(run), indent=1) + "\n")
    if arguments.readme:
        text = arguments.readme.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        arguments.readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
