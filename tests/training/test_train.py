"""Whole runs: the run folder, determinism, and that a model learns."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from training.cli import parse
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import build_dataset
from training.engine import distributed
from training.engine.distributed import select_device, training_device
from training.engine.trainer import build_trainer
from training.errors import ConfigError, TrainingDiverged
from training.models import build_model
from training.report.report import _CAPTIONS
from training.reproducibility import resolve_seeds
from training.runs.checkpoint import load_checkpoint
from training.runs.folder import create_run_folder
from training.runs.history import History


def _run(config: TrainConfig) -> tuple[dict, Path, str]:
    console = Console(file=io.StringIO(), width=120)
    summary = run_train(config, console)
    newest = max(Path(config.output.root).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return summary, newest, console.file.getvalue()


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_same_seed_same_bits(config: TrainConfig):
    _, first, _ = _run(config)
    _, second, _ = _run(config)
    assert (first.name, second.name) == (
        "digits-lt-eager-logit-adjusted-0",
        "digits-lt-eager-logit-adjusted-0-2",
    )
    times = {"train_seconds", "images_per_second"}
    left, right = (
        [{k: v for k, v in record.items() if k not in times} for record in _records(folder)]
        for folder in (first, second)
    )
    assert left == right
    for name in ("last", "best"):
        models = [
            load_checkpoint(f / "checkpoints" / f"{name}.pt")["model"] for f in (first, second)
        ]
        assert models[0].keys() == models[1].keys()
        assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


@pytest.mark.parametrize("source", ["split", "sampler", "augmentation", "initialisation"])
def test_every_seed_matters(config: TrainConfig, source: str):
    def losses(config: TrainConfig) -> list[float]:
        seeds = resolve_seeds(config.seed, config.seeds)
        data = build_dataset(config, seeds.split)
        trainer = build_trainer(config, data, seeds, torch.device("cpu"))
        found: list[float] = []
        trainer.run_epoch(found.append)
        return found

    changed = copy.deepcopy(config)
    setattr(changed.seeds, source, 1)
    assert losses(config) == losses(config)
    assert losses(config) != losses(changed)


def test_initial_weights_are_the_same_for_every_whitening(config: TrainConfig):
    models = []
    for whitening in ("none", "batchnorm", "eager", "fused"):
        config.whitening = whitening
        models.append(build_model(config, 1, 10, seed=3))
    reference = dict(models[0].named_parameters())
    for model in models[1:]:
        parameters = dict(model.named_parameters())
        assert parameters.keys() == reference.keys()
        assert all(torch.equal(parameters[name], reference[name]) for name in reference)


def test_the_global_generator_is_left_alone(config: TrainConfig):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(config, 1, 10, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_metrics_lines_have_the_documented_schema(config: TrainConfig):
    _, folder, _ = _run(config)
    records = _records(folder)
    assert [record["epoch"] for record in records] == [1, 2]
    split_keys = {
        *("loss", "accuracy", "balanced_accuracy", "many", "medium", "few", "per_class"),
        *("worst_class", "worst_class_accuracy", "macro_precision", "macro_f1", "ece"),
    }
    for record in records:
        assert set(record) == {
            "epoch",
            "step",
            "learning_rate",
            "train",
            "evaluated",
            "validation",
            "test",
            "train_seconds",
            "images_per_second",
        }
        assert set(record["train"]) == {"loss", "accuracy"}
        for split in ("validation", "test"):
            assert set(record[split]) == split_keys
            assert len(record[split]["per_class"]) == 10
            assert 0 <= record[split]["balanced_accuracy"] <= 1
    assert records[1]["step"] == 2 * (342 // 64)


def test_an_empty_group_is_null_in_json(config: TrainConfig):
    config.imbalance_factor = 1  # 124 images of every class: all classes are "many"
    summary, folder, _ = _run(config)
    assert summary["shot_groups"]["few"] == []
    assert _records(folder)[0]["test"]["few"] is None
    assert json.loads((folder / "summary.json").read_text())["last"]["test"]["few"] is None


def test_summary_reports_last_and_best_and_what_chose_it(config: TrainConfig):
    summary, folder, text = _run(config)
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["selection"] == {"split": "validation", "metric": "balanced_accuracy"}
    assert summary["last"]["epoch"] == 2
    best = max(_records(folder), key=lambda r: r["validation"]["balanced_accuracy"])
    chosen = summary["best"]["validation"]["balanced_accuracy"]
    assert chosen == best["validation"]["balanced_accuracy"]
    assert load_checkpoint(folder / "checkpoints/best.pt")["epoch"] == summary["best"]["epoch"]
    for key in ("seeds", "wall_seconds", "images_per_second", "versions"):
        assert summary[key]
    environment = json.loads((folder / "env.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    # Without a terminal: one plain line per epoch, then the table.
    assert text.startswith("1,797 images found, kept 342 to train on, ")
    assert text.splitlines()[1].startswith("epoch 1/2  loss ")
    assert "\x1b" not in text
    assert "best (" in text


def test_best_ignores_the_test_split():
    def record(epoch: int, validation: float, loss: float, test: float) -> dict:
        result = {"balanced_accuracy": validation, "loss": loss}
        return {"epoch": epoch, "validation": result, "test": {"balanced_accuracy": test}}

    class Statistics:
        images, seconds = 1, 1.0

    history = History()
    chosen = [
        history.add(record(1, 0.5, 1.0, 0.1), Statistics),
        history.add(record(2, 0.5, 0.9, 0.0), Statistics),  # a tie: the lower loss wins
        history.add(record(3, 0.4, 0.1, 1.0), Statistics),
        history.add(record(4, 0.5, 0.9, 1.0), Statistics),
    ]
    assert chosen == [True, True, False, False]
    assert history.best == 1


def test_the_resolved_configuration_can_be_run_again(config: TrainConfig):
    _, folder, _ = _run(config)
    assert parse(["train", "--config", str(folder / "config.yaml")])[1] == config
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["width"] == 4


def test_pictures_and_report(config: TrainConfig):
    config.output.plots = True
    config.optim.epochs = 1
    _, folder, text = _run(config)
    report = (folder / "report.html").read_text()
    for name in _CAPTIONS:
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert report.count("data:image/png;base64,") == len(_CAPTIONS) == 7
    assert "http" not in report  # opens offline
    assert "report.html" in text


def test_overwrite_replaces_a_run_folder_and_nothing_else(config: TrainConfig, tmp_path: Path):
    first = create_run_folder("a", config.output)
    first.config.write_text("x: 1\n")
    (first.path / "old").touch()
    config.output.overwrite = True
    assert create_run_folder("a", config.output).path == first.path
    assert not (first.path / "old").exists()
    foreign = Path(config.output.root) / "home"
    foreign.mkdir()
    with pytest.raises(ConfigError, match=r"expected .*home to be a run folder"):
        create_run_folder("home", config.output)
    assert foreign.exists()


def test_overfits_one_batch(config: TrainConfig):
    config.optim.weight_decay = 0.0
    config.optim.warmup_epochs, config.optim.lr = 0, 0.5
    config.loss = "ce"
    seeds = resolve_seeds(0, config.seeds)
    trainer = build_trainer(config, build_dataset(config, seeds.split), seeds, torch.device("cpu"))
    examples = next(trainer.feed.examples(trainer.sampler.batches(1), 1))
    losses = [trainer.training_step(examples)[0].item() for _ in range(60)]
    assert losses[0] > 1.5
    assert losses[-1] < 0.03


def test_divergence_stops_the_run(config: TrainConfig):
    config.whitening = "none"
    config.optim.lr = 1e20
    with pytest.raises(TrainingDiverged, match=r"in step \d+ \(epoch \d\); lower --optim.lr"):
        _run(config)


def test_unknown_device_says_what_is_expected():
    with pytest.raises(ConfigError, match="expected auto, cpu or a device"):
        select_device("gpu0")
    assert select_device("cpu") == torch.device("cpu")


def test_a_process_of_torchrun_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "select_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    config = TrainConfig(device="cuda")
    assert training_device(config) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device(config) == torch.device("cuda", 1)
    assert training_device(TrainConfig(device="cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"at most 2 processes on this machine.*local rank 2;"):
        training_device(config)
