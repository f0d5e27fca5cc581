"""The digest of a run: what RESULTS.md needs of it, in a file small enough to be committed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from training.data.options import resolve_cut
from training.errors import ConfigError
from training.runs.finished import Run, read_run
from training.runs.folder import without_nan, write_text

METRICS = ("accuracy", "many", "medium", "few", "worst_class_accuracy")
GRID = "grid.json"
LARGEST = 2048  # bytes


def collect(
    folder: Path, results: Path, baseline: str | None, pairs: list[list[str]] | None = None
) -> list[Path]:
    """Write the digests of a grid's finished runs, and of the stage2 runs made from them.

    They join what was collected before, perhaps on another machine, and replace runs of the same
    name.

    Args:
        folder: Of an `ablate` grid.
        results: Folder of all grids.
        baseline: Name of an arm; null keeps what was chosen before, at first the grid's first arm.
        pairs: Arms to compare with each other; null keeps what was chosen before.

    Returns:
        The files, grid.json first.

    Raises:
        ConfigError: If there is no such grid, no finished run or no such arm.
    """
    if not (folder / "manifest.json").is_file():
        raise ConfigError(
            f"collect: expected the folder of an `ablate` grid, with a manifest.json, got {folder}."
        )
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    arms = {run["name"]: run["arm"] for run in manifest["runs"]}
    order = list(dict.fromkeys(arms.values()))
    files = {}
    for path in sorted((folder / "runs").glob("*/summary.json")):
        run = read_run(path.parent)
        stage2 = run.summary.get("stage2")
        source = Path(stage2["source"]).name if stage2 else path.parent.name
        if source not in arms:
            continue  # of an earlier grid of this name
        arm = arms[source] + (f"+{stage2['method']}" if stage2 else "")
        order.extend([arm] if arm not in order else [])
        files[path.parent.name] = digest(run, arm)
    if not files:
        raise ConfigError(f"collect: expected finished runs in {folder / 'runs'}, found none.")
    target = results / manifest["name"]
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(target.glob("*.json")):
        if path.name != GRID and path.stem not in files:
            order.append(json.loads(path.read_text(encoding="utf-8"))["arm"])
    grid = _grid(target / GRID, order, baseline, pairs)
    write_text(target / GRID, json.dumps(grid, indent=1) + "\n")
    for name, content in files.items():
        _write(target / f"{name}.json", content)
    return [target / GRID, *(target / f"{name}.json" for name in files)]


def _grid(
    path: Path, arms: list[str], baseline: str | None, pairs: list[list[str]] | None
) -> dict[str, Any]:
    """What grid.json becomes."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    arms = list(dict.fromkeys([*(arm for arm in before.get("arms", []) if arm in arms), *arms]))
    chosen = baseline or before.get("baseline", arms[0])
    if all(baseline_of(arm, chosen, arms) is None for arm in arms):
        raise ConfigError(
            f"baseline: expected one of the arms {', '.join(arms)}, or what several of them "
            f"end in, got {chosen}."
        )
    pairs = before.get("pairs", []) if pairs is None else pairs
    unknown = [arm for pair in pairs for arm in pair if arm not in arms]
    if unknown:
        raise ConfigError(f"pairs: expected arms of {', '.join(arms)}, got {', '.join(unknown)}.")
    return {"baseline": chosen, "arms": arms, "pairs": pairs}


def baseline_of(arm: str, baseline: str, arms: Collection[str]) -> str | None:
    """The arm to compare an arm with; null if there is none.

    It is the baseline, or, where that is a label of a grid's last axis, the arm that has it and is
    otherwise the same.

    Example:
        >>> arms = ["width=64-none", "width=64-fused", "width=256-none", "width=256-fused"]
        >>> baseline_of("width=256-fused", "none", arms), baseline_of("width=64-fused", "ce", arms)
        ('width=256-none', None)
    """
    if baseline in arms:
        return baseline
    ends = [other for other in arms if other.endswith(f"-{baseline}")]
    same = [other for other in ends if arm.startswith(other.removesuffix(baseline))]
    return max(same, key=len, default=None)


def digest(run: Run, arm: str) -> dict[str, Any]:
    """The digest of a finished run, and of what `diagnose` has found of its last checkpoint."""
    summary, config = run.summary, run.config
    seconds = summary["wall_seconds"]
    stage2 = summary.get("stage2")
    if stage2:  # a method costs both of its stages
        source = run.folder.path.parent / Path(stage2["source"]).name  # the path may be relative
        seconds += read_run(source).summary["wall_seconds"]
    environment = json.loads(run.folder.environment.read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "arm": arm,
        "dataset": config.dataset,
        "imbalance_factor": resolve_cut(config)[1],
        "class_order_seed": config.data.class_order_seed,
        "seed": stage2["options"]["seed"] if stage2 else config.seed,
        "epochs": config.optim.epochs,
        "weight_decay": config.optim.weight_decay,
        "last": _accuracies(summary["last"]["test"]),
        "best": _accuracies(summary["best"]["test"]),
        "minutes": seconds / 60,
        "commit": environment.get("commit"),
    }
    path = run.folder.path / "diagnostics" / "last-test.json"
    if path.is_file():
        diagnosis = json.loads(path.read_text(encoding="utf-8"))
        found["mechanism"] = _mechanism(diagnosis)
        if "ood" in diagnosis:
            found["ood"] = {
                name: {
                    score: [rates["auroc"], rates["fpr95"]]
                    for score, rates in scores.items()
                    if score != "images"
                }
                for name, scores in diagnosis["ood"].items()
            }
    return without_nan(_rounded(found))


def _accuracies(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result.get(name) for name in METRICS}


def _mechanism(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `diagnose` that are one number each and say how the layer works."""
    before, after, batches = diagnosis["before"], diagnosis["after"], diagnosis["batches"]["all"]
    return {
        "correlation_before": before["mean_abs_correlation"],
        "correlation": after["mean_abs_correlation"],
        "spectral_entropy": after["spectral_entropy"],
        "effective_rank": after["effective_rank"],
        "hessian_condition": diagnosis["classifier"]["hessian_condition"],
        "gradient_cosine": batches["gradient_cosine"],
        "covariance_fluctuation": batches["covariance_fluctuation"],
        "distinct_classes": batches["distinct_classes"],
    }


def _rounded(value: Any) -> Any:
    """Keep six digits of every number."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a line per entry."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if len(text) > LARGEST:
        raise ConfigError(
            f"{path}: expected at most {LARGEST} bytes, got {len(text)}; diagnose fewer foreign "
            "data sets at a time."
        )
    write_text(path, text)
