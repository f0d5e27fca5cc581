"""Exported files compute what the model computes; folding is exact."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from training.cli import run
from training.commands import export as export_run
from training.commands.export import run_export
from training.config import TrainConfig
from training.config.commands import ExportConfig
from training.errors import ConfigError
from training.export import (
    fold_whitening,
    freeze_whitening,
    load_safetensors,
)
from training.export.formats import METADATA_KEY
from training.models import WhitenedClassifier, build_model
from training.runs.finished import load_run, read_run

LAYERS: list[dict[str, Any]] = [
    {"whitening": "none"},
    {"whitening": "batchnorm"},
    {"whitening": "eager", "groups": 2},
    {"whitening": "fused"},
    {"whitening": "fused", "groups": 4, "kind": "cholesky"},
    {"whitening": "fused", "kind": "pca"},
    {"whitening": "fused", "running": "matrix"},
]


def _model(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> WhitenedClassifier:
    """A model whose running statistics have seen correlated features."""
    config = TrainConfig(whitening=options["whitening"])
    config.model.width = 4
    for name, value in options.items():
        if name != "whitening":
            setattr(config.whitening_options, name, value)
    model = build_model(config, 1, 5, seed=1).to(dtype)
    generator = torch.Generator().manual_seed(0)
    model.classifier.bias.data.normal_(generator=generator)
    for _ in range(3):
        model(torch.randn(64, 1, 8, 8, generator=generator).to(dtype))
    return model.eval()


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_folding_is_exact_to_rounding_in_float64(options: dict[str, Any]):
    model = _model(options, torch.float64)
    images = torch.randn(32, 1, 8, 8, dtype=torch.float64)
    folded = fold_whitening(model)
    assert isinstance(folded.whitening, nn.Identity)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        freeze_whitening(model)(images), model(images), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_folding_in_float32_is_off_by_rounding_only(options: dict[str, Any]):
    # The weight's norm grows by that of A, up to 1 / sqrt(eps) = 32: so do roundings of 6e-8.
    model = _model(options)
    images = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            fold_whitening(model)(images), model(images), rtol=1e-4, atol=1e-4
        )


def test_folding_leaves_the_model_alone():
    model = _model({"whitening": "fused"})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold_whitening(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not isinstance(model.whitening, nn.Identity)


def test_a_classifier_that_is_not_linear_is_not_folded_into():
    class Normalised(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.normalize(x))

    model = _model({"whitening": "fused"})
    model.classifier = Normalised(16, 5)
    with pytest.raises(ConfigError, match="got Normalised; leave --fold out"):
        fold_whitening(model)


def _export(trained: Path, tmp_path: Path, form: str, fold: bool, ending: str) -> tuple[Path, str]:
    console = Console(file=io.StringIO(), width=200)
    config = ExportConfig(str(trained), form, "best", fold, str(tmp_path / f"model{ending}"))
    return run_export(config, console), console.file.getvalue()


def _images_and_logits(trained: Path) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_run(read_run(trained), "best", torch.device("cpu"))
    images = loaded.dataset.normalise(loaded.dataset.test.images[:50])
    with torch.no_grad():
        return images, loaded.model.eval()(images)


@pytest.mark.parametrize("fold", [False, True])
def test_safetensors_load_into_the_same_model(trained: Path, tmp_path: Path, fold: bool):
    path, text = _export(trained, tmp_path, "safetensors", fold, ".safetensors")
    assert "largest difference to the model's logits" in text
    model, metadata = load_safetensors(path)
    assert isinstance(model.whitening, nn.Identity) == fold
    images, logits = _images_and_logits(trained)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-4 if fold else 0)
    assert metadata["class_names"] == [str(k) for k in range(10)]
    assert (metadata["checkpoint"], metadata["folded"]) == ("best", fold)
    assert len(metadata["mean"]) == len(metadata["std"]) == metadata["channels"] == 1
    assert metadata["config"]["whitening"] == "fused"


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
def test_an_exported_program_runs_for_any_batch(trained: Path, tmp_path: Path, fold: bool):
    path, _ = _export(trained, tmp_path, "torch-export", fold, ".pt2")
    extra = {METADATA_KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()
    images, logits = _images_and_logits(trained)
    for size in (1, 3, 50):
        torch.testing.assert_close(module(images[:size]), logits[:size], rtol=1e-4, atol=1e-4)
    assert json.loads(extra[METADATA_KEY])["folded"] is fold


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
def test_onnxruntime_computes_the_same_for_any_batch(trained: Path, tmp_path: Path, fold: bool):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, _ = _export(trained, tmp_path, "onnx", fold, ".onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images, logits = _images_and_logits(trained)
    for size in (1, 3, 50):
        found = session.run(["logits"], {"images": images[:size].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), logits[:size], rtol=1e-4, atol=1e-4)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert metadata["folded"] is fold


def test_a_file_that_computes_something_else_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(model: WhitenedClassifier) -> WhitenedClassifier:
        folded = fold_whitening(model)
        folded.classifier.bias.data[3] += 0.01
        return folded

    monkeypatch.setattr(export_run, "fold_whitening", wrong)
    with pytest.raises(ConfigError, match=r"got a difference of 1.0e-02 on 16 test images"):
        _export(trained, tmp_path, "safetensors", True, ".safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "ending", "package"),
    [("onnx", ".onnx", "onnxscript"), ("safetensors", ".safetensors", "safetensors")],
)
def test_a_missing_package_is_one_line_with_the_command(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    ending: str,
    package: str,
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else name)
    with pytest.raises(ConfigError, match=f"{package} missing; run: pip install {package}"):
        _export(trained, tmp_path, form, False, ending)


def test_the_command_writes_into_the_run_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert run(["export", str(folder), "--fold", "true"]) == 0
    assert (folder / "export" / "last-folded.safetensors").is_file()
    assert "last-folded.safetensors" in capsys.readouterr().out
    assert run(["export", str(folder), "--output", str(tmp_path / "a.onnx")]) == 2
    assert "ends in .safetensors for --format safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(["export", str(folder), "--format", "pickle"])


def test_files_of_others_are_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="that `python -m training export` wrote"):
        load_safetensors(path)
    assert "safetensors" in sys.modules
