"""Times whitening on a GPU, every provider side by side: python -m benchmarks.gpu --output FILE.

Whole passes against the peers, eigensolvers, a training step, products of wide inputs against
cuBLAS's, and every stage alone: CUDA C++, Triton and plain PyTorch on the same arguments. Everybody
is verified before being timed; who fails is written down with the reason, and the others go on.
``benchmarks/gpu_timing.py`` says how it is timed, ``benchmarks/gpu_cases.py`` what.

The file is written after every case. Where it exists and was made by the same sources on the same
device with the same options, what it holds is not measured again, unless it failed.
``tools/gpu_summary.py`` compares it with the targets.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import fastwhiten

from .gpu_cases import Case, plan
from .gpu_timing import Entry, failure, measure


def header(options: argparse.Namespace, cases: list[Case]) -> dict[str, Any]:
    """Return what the times depend on, and what has to be there in the end."""
    cuda = options.device == "cuda"
    expected: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        expected.setdefault(case.section, {})[case.name] = list(case.runs)
    return {
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else "no GPU: a dry run on the CPU",
            "capability": list(torch.cuda.get_device_capability()) if cuda else None,
            "fastwhiten": fastwhiten.__version__,
            "sources": options.sources,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton_version(),
            "tf32": {
                "products": torch.backends.cuda.matmul.allow_tf32,
                "convolutions": torch.backends.cudnn.allow_tf32,
            },
        },
        "dry_run": not cuda,
        "rounds": options.rounds,
        "expected": expected,
    }


def triton_version() -> str | None:
    """Return the version of Triton, None where it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def load(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the results in a file that this run can go on from, else new ones."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if all(found.get(key) == value for key, value in head.items()):
        return {**head, "measured": found.get("measured", {})}
    return {**head, "measured": {}}


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the file so that it is whole at any time."""
    whole = path.with_name(path.name + ".new")
    whole.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(whole, path)


def complete(found: dict[str, Entry] | None, case: Case) -> bool:
    """Return whether a case needs no further run: all there, none failed."""
    return found is not None and all(
        name in found and "failed" not in found[name] for name in case.runs
    )


def run(case: Case, device: torch.device, rounds: int) -> dict[str, Entry]:
    """Measure a case; where even its inputs cannot be made, everybody has failed."""
    try:
        return measure(case.prepare(device), device, rounds, case.graphs)
    except Exception as error:
        return {name: failure(error) for name in case.runs}


def line(case: Case, found: dict[str, Entry]) -> str:
    """Return a case's result in one line."""
    cells = []
    for name, entry in found.items():
        times = [entry[way] for way in ("graph_us", "eager_us") if way in entry]
        cells.append(f"{name} {min(times):.1f}" if times else f"{name} {next(iter(entry))}")
    return f"{case.section}: {case.name}: " + ", ".join(cells) + " us"


def main() -> int:
    """Measure what is missing, in order; return 0 if all is there and nobody failed."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=30, help="runs of everybody in a case")
    parser.add_argument("--small", action="store_true", help="a few cases of every section")
    parser.add_argument("--seconds", type=float, help="begin no case after this many")
    parser.add_argument("--sources", default="", help="what identifies the sources")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False; --device cpu is a try")
    # Products only: convolutions of the training step stay as PyTorch has them by default.
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.device == "cpu":  # a try: threads that wait for each other would show nothing
        torch.set_num_threads(1)
    device, cases = torch.device(options.device), plan(options.small)
    results = load(options.output, header(options, cases))
    save(options.output, results)
    good = True
    for case in cases:
        section = results["measured"].setdefault(case.section, {})
        if complete(section.get(case.name), case):
            continue
        if options.seconds is not None and time.monotonic() - started > options.seconds:
            print(f"{case.section}: {case.name}: not measured: {options.seconds:.0f} s are over")
            good = False
            continue
        found = section[case.name] = run(case, device, options.rounds)
        save(options.output, results)
        print(f"[{time.monotonic() - started:.0f} s] {line(case, found)}", flush=True)
        for name, entry in found.items():
            if "failed" in entry:
                good = False
                print(f"  {name} FAILED: {entry['failed']}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
