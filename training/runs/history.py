"""The epochs of a run so far, and which of them is the best."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from training.config import flatten, is_number
from training.engine.trainer import EpochStatistics
from training.errors import ConfigError
from training.runs.folder import RunFolder, append_json_line, write_text

SELECTION_SPLIT = "validation"
SELECTION_METRIC = "balanced_accuracy"

Confusions = dict[str, Tensor | None]


@dataclass
class History:
    """The epochs so far, and which one is the best.

    Attributes:
        records: The lines of metrics.jsonl.
        best: Position of the best record; -1 if there is none.
        images: Training images seen.
        train_seconds: Time of the training steps.
        wall_seconds: Time of the parts of the run before this one, if it was resumed.
        confusions: Confusion matrix int64 [K, K] per split of the "last" evaluated and the "best"
            model.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best: int = -1
    images: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    confusions: dict[str, Confusions] = field(default_factory=dict)

    def add(
        self,
        record: dict[str, Any],
        statistics: EpochStatistics,
        confusions: Confusions | None = None,
    ) -> bool:
        """Append an epoch; return whether it is the best one so far.

        Best is the highest balanced accuracy on the validation split, the lower validation loss
        on a tie. The test split is never looked at. An epoch that was not evaluated is not the
        best, and without a validation split the best one is always the last one.
        """
        self.records.append(record)
        self.images += statistics.images
        self.train_seconds += statistics.seconds
        if confusions:
            self.confusions["last"] = confusions
        is_best = self._is_best(record)
        if is_best:
            self.best = len(self.records) - 1
            self.confusions["best"] = confusions or {}
        return is_best

    def _is_best(self, record: dict[str, Any]) -> bool:
        if not record.get("evaluated", True):
            return False
        if self.best < 0 or record[SELECTION_SPLIT] is None:
            return True
        return _score(record) > _score(self.records[self.best])

    def state(self, folder: RunFolder) -> dict[str, Any]:
        """Return what a checkpoint holds of it; the records are in metrics.jsonl, not here."""
        size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
        return {
            "epochs": len(self.records),
            "metrics_bytes": size,
            "best": self.best,
            "images": self.images,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds,
            "confusions": self.confusions,
        }


def restore_history(state: dict[str, Any], folder: RunFolder) -> History:
    """Rebuild a history from a checkpoint's state and metrics.jsonl; writes nothing.

    Raises:
        ConfigError: If metrics.jsonl has lost epochs that the checkpoint knows.
    """
    content = folder.metrics.read_bytes() if folder.metrics.exists() else b""
    lines = content[: state["metrics_bytes"]].splitlines()
    if len(content) < state["metrics_bytes"] or len(lines) != state["epochs"]:
        raise ConfigError(
            f"{folder.metrics}: expected at least the {state['epochs']} epochs "
            f"({state['metrics_bytes']} bytes) that the checkpoint knows, got {len(content)} "
            "bytes; restore the file, or start again with --resume none."
        )
    return History(
        records=[_with_nan(json.loads(line)) for line in lines],
        best=state["best"],
        images=state["images"],
        train_seconds=state["train_seconds"],
        wall_seconds=state["wall_seconds"],
        confusions=state["confusions"],
    )


def append_record(folder: RunFolder, history: History) -> None:
    """Write the last record to metrics.jsonl, and all of them to metrics.csv."""
    append_json_line(folder.metrics, history.records[-1])
    write_csv(folder, history)


def truncate_metrics(folder: RunFolder, state: dict[str, Any] | None, history: History) -> None:
    """Cut metrics.jsonl and metrics.csv back to what a checkpoint's state of the history knows."""
    with folder.metrics.open("ab") as file:
        file.truncate(state["metrics_bytes"] if state else 0)
        os.fsync(file.fileno())
    write_csv(folder, history)


def write_csv(folder: RunFolder, history: History) -> None:
    """Write the records' single numbers, without those per class, as metrics.csv."""
    rows = [_numbers(record) for record in history.records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder.metrics_csv, text.getvalue())


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"validation.accuracy": 0.5} and the like; a NaN is an empty cell."""
    numbers = {name: value for name, value in flatten(record).items() if is_number(value)}
    return {name: "" if math.isnan(value) else value for name, value in numbers.items()}


def _with_nan(value: Any, key: str = "") -> Any:
    """Undo `files.without_nan` where a number was: a missing split stays None."""
    if value is None and key not in ("validation", "test"):
        return math.nan
    if isinstance(value, dict):
        return {name: _with_nan(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return value


def _score(record: dict[str, Any]) -> tuple[float, float]:
    result = record[SELECTION_SPLIT]
    return result[SELECTION_METRIC], -result["loss"]
