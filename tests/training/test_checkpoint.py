"""Checkpoints and other files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.runs.checkpoint import load_checkpoint, save_checkpoint
from training.runs.folder import append_json_line, write_atomic, write_json


def test_round_trip_with_weights_only(tmp_path: Path):
    model = torch.nn.Linear(2, 3)
    path = tmp_path / "a.pt"
    save_checkpoint(path, model, epoch=3, config={"seed": 0}, class_counts=torch.tensor([2, 1]))
    loaded = torch.load(path, weights_only=True)
    assert loaded["epoch"] == 3
    assert loaded["config"] == {"seed": 0}
    assert torch.equal(load_checkpoint(path)["model"]["weight"], model.weight)


def test_a_failure_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.pt"
    save_checkpoint(path, torch.nn.Linear(2, 3), epoch=1)
    before = path.read_bytes()

    def save_half(value, file):
        file.write(before[: len(before) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, torch.nn.Linear(2, 3), epoch=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_a_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError("read-only")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="read-only"):
        write_atomic(path, lambda file: file.write(b"new") and None)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_format_is_refused(tmp_path: Path):
    torch.save({"model": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of format 3, got format None"):
        load_checkpoint(tmp_path / "a.pt")
    save_checkpoint(tmp_path / "b.pt", torch.nn.Linear(2, 3), step=1)
    torch.save({**load_checkpoint(tmp_path / "b.pt"), "format": 2}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of format 3, got format 2; use"):
        load_checkpoint(tmp_path / "b.pt")


def test_json_has_no_nan(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.0], "y": (float("inf"),)})
    assert (
        tmp_path / "a.json"
    ).read_text().split() == '{ "x": [ null, 1.0 ], "y": [ null ] }'.split()
    append_json_line(tmp_path / "b.jsonl", {"x": float("nan")})
    append_json_line(tmp_path / "b.jsonl", {"x": 1})
    assert (tmp_path / "b.jsonl").read_text() == '{"x": null}\n{"x": 1}\n'
