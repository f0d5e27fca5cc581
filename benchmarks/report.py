"""Tables made from benchmark results.

    python -m benchmarks.report              README's table and benchmarks/results/README.md, from
                                             every machine's committed results
    python -m benchmarks.report FILE         the tables of a run, written by --benchmark-json
    python -m benchmarks.report FILE --save  keeps it as its machine's results, and does the first
    python -m benchmarks.report FILE --slower  what has become slower against the nearest machine

A machine's results are ``benchmarks/results/cpu/<processor>-<instruction set>/scenes.json``; a
picture ``curves.svg`` beside it (``python -m benchmarks.curves``) is shown, too.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .gpu_timing import best
from .scenes import SCENES, Scene

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = (
    "<!-- speed table: made by python -m benchmarks.report -->",
    "<!-- end of speed table -->",
)
HEAD = """# Rivals, a machine at a time

Made by `python -m benchmarks.report` from `cpu/*/scenes.json`. Eager's time over each one's,
forward + backward in float32, medians of interleaved rounds. *fused* is `fastwhiten.whiten`,
*fused-cholesky* the same with `kind="cholesky"`, *layer* a `ChannelWhitening` in training: its
running covariance is a product more where M <= C. *closed-form* is our mathematics in plain
PyTorch. *iternorm* and *batchnorm* do less: their output is not white; *welford-torch* adds no
eps. *eigensolve* is the faster of the library's eigensolver and ours by itself, errors are
against float64, *peak* is memory in multiples of the input. Who was absent, failed or has a wrong
gradient is named."""
Providers = Mapping[str, Mapping[str, Any]]  # as bench_whiten.compare returns them
Run = Mapping[str, Any]  # as summarize returns it
NEAR_FLOOR = 1.3  # times the floor: good where the floor forbids the target
SLOWER = 0.85  # of the baseline's ratio: told
GRADIENT_ERROR = 1e-2  # above it a gradient is named in the tables
# Virtual machines call all generations by one name (machine.facts).
GENERATIONS = {
    "AMD EPYC family 25 model 1": "EPYC 7003 (Zen 3)",
    "AMD EPYC family 25 model 17": "EPYC 9004 (Zen 4)",
    "AMD EPYC family 26 model 2": "EPYC 9005 (Zen 5)",
}


def floor_of(scene: Scene, ceilings: Mapping[str, Any]) -> tuple[float, str]:
    """Return the seconds that forward + backward cannot go below, and what bounds them.

    Bytes at the speed of a copy or operations at that of sgemm, the larger. With k the smaller of
    M and D: the symmetric k x k matrix MCk, apply 2, reduce 2, backward apply 4 times MCk; per
    group W, F and V R V^T 10 k^3, and an eigensolve 10/3 k^3, to tridiagonal form and back: what
    comes between may vanish.
    """
    k = scene.eigen_size
    operations = 9 * scene.rows * scene.shape[1] * k + (10 + 10 / 3) * scene.groups * k**3
    products = operations / ceilings["flops_per_second"]
    traffic = scene.bytes() / ceilings["bytes_per_second"]
    return max(products, traffic), "GEMM" if products > traffic else "memory"


class Verdict(NamedTuple):
    """What a scene came to.

    Attributes:
        target: eager's time over fused's, at least.
        ratio: the same as measured, median and quartiles.
        over_floor: fused's time over the floor's.
        forbidden: whether one at the floor would miss the target.
        bound: "GEMM" or "memory".
        eigensolve: share of fused's time that the faster of the library's eigensolver and ours
            takes by itself.
    """

    target: float
    ratio: Sequence[float]
    over_floor: float
    forbidden: bool
    bound: str
    eigensolve: float

    @property
    def share(self) -> float:
        """Reached share of the target, or of the distance to the floor where that forbids it."""
        reached = self.ratio[0] / self.target
        return max(reached, NEAR_FLOOR / self.over_floor) if self.forbidden else reached


def judge(scene: Scene, providers: Providers, ceilings: Mapping[str, Any]) -> Verdict | None:
    """Return a scene's verdict, forward + backward; None where eager or fused was not measured."""
    eager, fused = (providers.get(name, {}) for name in ("eager", "fused"))
    if "seconds" not in eager or "seconds" not in fused:
        return None
    floor, bound = floor_of(scene, ceilings)
    seconds = fused["seconds"][0]
    return Verdict(
        scene.target,
        fused["ratio"],
        seconds / floor,
        eager["seconds"][0] / floor < scene.target,
        bound,
        ceilings["eigh"].get(f"{scene.groups}x{scene.eigen_size}", 0.0) / seconds,
    )


def verdicts(run: Run) -> dict[Scene, Verdict]:
    """Return the verdicts of a run's scenes."""
    ceilings = run["machine"]["ceilings"]
    judged = {scene: judge(scene, run["both"].get(scene.name, {}), ceilings) for scene in SCENES}
    return {scene: verdict for scene, verdict in judged.items() if verdict is not None}


def _spread(figures: Sequence[float]) -> str:
    """Return a median, with the quartiles where there are."""
    quartiles = f" [{figures[1]:.2f}-{figures[2]:.2f}]" if len(figures) > 1 else ""
    return f"{figures[0]:.2f}{quartiles}"


def line(scene: Scene, mode: str, providers: Providers, ceilings: Mapping[str, Any]) -> str:
    """Return what is said of a scene as soon as it is measured."""
    text = f"{scene.name} {mode}: "
    ratio = providers.get("fused", {}).get("ratio")
    text += f"fused {_spread(ratio)} times faster than eager" if ratio else "no ratio"
    verdict = judge(scene, providers, ceilings) if mode == "both" else None
    return text + (f", {verdict.over_floor:.2f} x floor" if verdict else "")


def describe(machine: Mapping[str, Any]) -> str:
    """Return a machine's name with its instruction set and threads."""
    name = machine["gpu"] if machine["device"] == "cuda" else machine["processor"]
    return f"{GENERATIONS.get(name, name)}, {machine['isa']}, {machine['threads']} threads"


def slug(machine: Mapping[str, Any]) -> str:
    """Return a machine's folder in benchmarks/results/.

    Example:
        >>> slug({"device": "cpu", "processor": "AMD EPYC 7B13", "isa": "avx2"})
        'cpu/amd-epyc-7b13-avx2'
    """
    cuda = machine["device"] == "cuda"
    name = machine["gpu"] if cuda else f"{machine['processor']} {machine['isa']}"
    return f"{machine['device']}/" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def bounds(machine: Mapping[str, Any]) -> str:
    """Return a machine's ceilings."""
    copy, gemm = (machine["ceilings"][f"{what}_per_second"] for what in ("bytes", "flops"))
    return f"copy {copy / 1e9:.1f} GB/s, sgemm {gemm / 1e9:.0f} GFLOP/s"


def providers_table(run: Run) -> str:
    """Return one machine's ratios of eager's time to each provider's, in markdown."""
    measured = [run["both"].get(scene.name, {}) for scene in SCENES]
    timed = (name for row in measured for name, entry in row.items() if "ratio" in entry)
    columns = [name for name in dict.fromkeys(timed) if name != "eager"]
    head = ["(N, C)", "target", *columns, "fused / floor", "floor", "eigensolve"]
    head += ["error", "gradient error", "peak, inputs"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for scene, verdict in verdicts(run).items():
        row = run["both"][scene.name]
        cells = [scene.name, f"{scene.target:g}"]
        for name in columns:
            ratio = row.get(name, {}).get("ratio")
            cells.append("" if ratio is None else _spread(ratio if name == "fused" else ratio[:1]))
        cells += [f"{verdict.over_floor:.2f}", verdict.bound, f"{100 * verdict.eigensolve:.0f} %"]
        cells += [f"{row['fused'][key]:.1e}" for key in ("error", "grad_error")]
        peaks = [row[name].get("peak_inputs") for name in ("fused", "eager")]
        cells.append(" vs eager ".join("?" if p is None else f"{p:.1f}" for p in peaks))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(run: Run) -> list[str]:
    """Return a line for everybody who was not there, failed, or has a wrong gradient."""
    found: dict[str, list[str]] = {}
    for scene, providers in run["both"].items():
        for name, entry in providers.items():
            wrong = entry.get("grad_error", 0.0)
            if "absent" in entry:
                found.setdefault(f"{name} was not measured, {entry['absent']}", []).append(scene)
            elif "failed" in entry:
                reason = entry["failed"].split(": {")[0]  # without numbers
                found.setdefault(f"{name} failed, {reason}", []).append(scene)
            elif not wrong <= GRADIENT_ERROR:  # NaN, too
                found.setdefault(f"{name} has a gradient error of {wrong:.0e}", []).append(scene)
    return [
        what if len(scenes) == len(run["both"]) else f"{what}: {', '.join(scenes)}"
        for what, scenes in found.items()
    ]


def misses(run: Run) -> list[str]:
    """Return a line for every target that a run did not reach."""
    found = []
    for scene, verdict in verdicts(run).items():
        if verdict.share < 1.0:
            text = f"{scene.name}: {_spread(verdict.ratio)} times faster than eager, "
            text += f"target {scene.target:g}; {verdict.over_floor:.2f} x floor"
            found.append(text + (f", target {NEAR_FLOOR:g}" if verdict.forbidden else ""))
        row = run["both"][scene.name]
        cholesky = row.get("cholesky", {}).get("seconds")
        for name in ("fused", "fused-cholesky") if scene.beats_cholesky else ("fused-cholesky",):
            ours = row.get(name, {}).get("seconds")
            if cholesky and ours and ours[0] >= cholesky[0]:
                times = ours[0] / cholesky[0]
                found.append(
                    f"{scene.name}: {name} takes {times:.2f} of eager Cholesky's time, "
                    "target below 1"
                )
    return found


def text(run: Run) -> str:
    """Return all that is said of a run at its end."""
    machine = run["machine"]
    lines = [f"{describe(machine)}: {bounds(machine)}", providers_table(run), *notes(run)]
    if machine["device"] == "cpu":  # those for a GPU: benchmarks/bench_targets.py
        lines += [*(misses(run) or ["every target reached"]), *slower(run, committed())]
    return "\n".join(lines)


def committed() -> list[Run]:
    """Return the results of every machine in benchmarks/results/cpu/."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu/*/scenes.json"))]


def nearest(machine: Mapping[str, Any], runs: Iterable[Run]) -> Run | None:
    """Return the run on the likest machine: instruction set, name, threads, then ceilings."""

    def distance(run: Run) -> tuple[Any, ...]:
        other = run["machine"]
        unlike = [machine[key] != other[key] for key in ("isa", "processor", "threads")]
        keys = ("bytes_per_second", "flops_per_second")
        ratios = [machine["ceilings"][key] / other["ceilings"][key] for key in keys]
        return *unlike, sum(abs(math.log(ratio)) for ratio in ratios)

    return min(runs, key=distance, default=None)


def slower(run: Run, others: Iterable[Run]) -> list[str]:
    """Return a warning for every scene whose ratio fell by 15 % against the nearest machine."""
    baseline = nearest(run["machine"], others)
    if baseline is None:
        return ["no committed results to compare with"]
    found, before = [], {scene: v.ratio[0] for scene, v in verdicts(baseline).items()}
    for scene, verdict in verdicts(run).items():
        change = verdict.ratio[0] / before.get(scene, math.inf)
        if 0 < change <= SLOWER:
            found.append(
                f"warning: {scene.name}: {_spread(verdict.ratio)} times faster than eager, "
                f"{100 * (change - 1):.0f} % against {before[scene]:.2f} on "
                f"{describe(baseline['machine'])}"
            )
    return found


def section(runs: Sequence[Run]) -> str:
    """Return README's table: the machines side by side, and the worst scene."""
    judged = [verdicts(run) for run in runs]
    head = ["(N, C)", "target", *(describe(run["machine"]) for run in runs)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for scene in SCENES:
        cells = [scene.name, f"{scene.target:g}"]
        for verdict in (found.get(scene) for found in judged):
            cell = f"{_spread(verdict.ratio)}, {verdict.over_floor:.2f} x floor" if verdict else ""
            cells.append(cell + (" **missed**" if verdict and verdict.share < 1.0 else ""))
        lines.append("| " + " | ".join(cells) + " |")
    share, name, where = min(
        (verdict.share, scene.name, describe(run["machine"]))
        for run, found in zip(runs, judged, strict=True)
        for scene, verdict in found.items()
    )
    return "\n".join(
        [*lines, "", f"The worst: {name} on {where}, at {100 * share:.0f} % of its target."]
    )


def machines(runs: Sequence[Run]) -> str:
    """Return benchmarks/results/README.md: each machine's ceilings, rivals and curves."""
    lines = [HEAD]
    for run in runs:
        machine = run["machine"]
        lines += ["", f"## {describe(machine)}", ""]
        lines += [f"{bounds(machine)}, torch {machine['torch']}.", "", providers_table(run)]
        lines += [f"\n{note}." for note in notes(run)]
        picture = f"{slug(machine)}/curves.svg"
        if (RESULTS / picture).exists():
            lines += ["", f"![{describe(machine)}]({picture})"]
    return "\n".join(lines) + "\n"


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


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return two runs of one machine as one: what was measured again is the new run's."""
    machine = {**old.get("machine_info", {}), **new["machine_info"]}
    benchmarks = {
        bench["fullname"]: bench for run in (old, new) for bench in run.get("benchmarks", ())
    }
    return {**new, "machine_info": machine, "benchmarks": list(benchmarks.values())}


def summarize(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run as it is committed: the scenes and the machine, no host details."""
    info = run["machine_info"]
    kept = ("processor", "isa", "threads", "cores", "fastwhiten", "torch", "python_version")
    kept += ("device", "gpu", "cuda", "triton", "ceilings")
    found = {
        "machine": {key: info[key] for key in kept if key in info},
        "datetime": run.get("datetime", ""),
        "both": {},
        "forward": {},
    }
    for extra in (bench["extra_info"] for bench in run["benchmarks"]):
        if "providers" in extra:
            found[extra["mode"]][extra["scene"]] = extra["providers"]
    return found


def save(run: Run) -> Path:
    """Write a run as its machine's results, and return where."""
    path = RESULTS / slug(run["machine"]) / "scenes.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path


def write() -> None:
    """Replace README's marked section, and benchmarks/results/README.md."""
    runs, readme = committed(), ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{section(runs)}\n{END}{rest.split(END)[1]}")
    (RESULTS / "README.md").write_text(machines(runs))


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", help="JSON written by --benchmark-json")
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    parser.add_argument("--slower", action="store_true", help="print the warnings only")
    options = parser.parse_args(arguments)
    if options.results is None:
        write()
        return
    found = json.loads(options.results.read_text())
    run = summarize(found)
    if options.slower:
        print("\n".join(slower(run, committed()) or ["speed: no scene is 15 % slower"]))
        return
    on_device = device_table(found["benchmarks"])
    print(*([on_device] * bool(on_device)), *([text(run)] * bool(run["both"])), sep="\n\n")
    if options.save:
        print(save(run))
        write()


if __name__ == "__main__":
    main()
