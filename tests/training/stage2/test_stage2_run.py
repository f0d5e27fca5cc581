"""The run folder of stage 2, what it may look at, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import training.runs.finished
from training.cli import parse
from training.cli import run as run_command
from training.commands.eval import evaluate_run, with_confusion
from training.commands.stage2 import _resolve, choose, evaluate_features, feature_split
from training.config import Stage2Config
from training.config.stage2 import check_stage2
from training.data import LongTailedDataset
from training.errors import ConfigError
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import ShotGroups
from training.models import build_model
from training.runs.checkpoint import load_checkpoint
from training.runs.comparable import group_runs
from training.runs.finished import Run, read_run, restore_dataset, restore_model
from training.stage2.split import choice_data

Stage2 = Callable[..., Run]
METHODS = ("crt", "lws", "los", "tau-norm", "logit-adjustment", "ncm")
TRAINED = ("crt", "lws", "los")


class Untouchable:
    """A test split that may be moved to a device, and nothing else."""

    def to(self, device: torch.device) -> Untouchable:
        return self

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split was touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test split was touched: len")


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_chosen_on_the_test_split(run: Run, method: str, validation: bool):
    dataset = replace(restore_dataset(run), test=Untouchable())
    if not validation:
        empty = dataset.validation
        empty = replace(empty, images=empty.images[:0], labels=empty.labels[:0])
        dataset = replace(dataset, validation=empty)
    epochs = {"epochs": 2} if method in TRAINED else {}
    config = _resolve(Stage2Config(method=method, run="", **epochs), run)
    model = restore_model(run, dataset.channels, "last", torch.device("cpu"))
    groups = ShotGroups.from_counts(dataset.class_counts.tolist())
    data = choice_data(dataset, 0.25, seed=0)
    choice = choose(config, run, dataset, data, model, groups)
    tried = {"ncm": 1} | {name: 2 for name in TRAINED}
    assert len(choice.results) == tried.get(method, 21)
    scores = [(r.balanced_accuracy, -r.loss) for r in choice.results]
    assert scores[choice.best] == max(scores)
    with pytest.raises(AssertionError, match="test split was touched"):  # the trap does shut
        len(dataset.test)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_other_test_labels_give_the_same_classifier(
    run: Run, stage2: Stage2, method: str, monkeypatch: pytest.MonkeyPatch
):
    options = {"epochs": 2} if method in TRAINED else {}
    first = stage2(method, name="first", **options)
    build = training.runs.finished.build_dataset

    def poisoned(*arguments: Any) -> LongTailedDataset:
        data = build(*arguments)
        return replace(data, test=replace(data.test, labels=data.test.labels.flip(0)))

    monkeypatch.setattr(training.runs.finished, "build_dataset", poisoned)
    second = stage2(method, name="second", **options)
    assert first.summary["last"]["test"] != second.summary["last"]["test"]
    for name in ("last", "best"):
        models = [load_checkpoint(r.folder.checkpoint(name))["model"] for r in (first, second)]
        assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_new_run_is_a_run(run: Run, stage2: Stage2, method: str, checkpoint: str):
    made = stage2(method)
    assert made.summary.keys() == run.summary.keys() | {"stage2"}
    for kind in ("last", "best"):
        assert made.summary[kind].keys() == run.summary[kind].keys()
        assert made.summary[kind]["test"].keys() == run.summary[kind]["test"].keys()
    for split in ("validation", "test"):
        assert evaluate_run(made, split, checkpoint)["equals_summary"] is True
    records = [json.loads(line) for line in made.folder.metrics.read_text().splitlines()]
    first = json.loads(run.folder.metrics.read_text().splitlines()[0])
    assert all(record.keys() == first.keys() for record in records)
    assert len(records) == {"crt": 10, "lws": 5, "los": 20}.get(method, 1)  # as published
    best = records[made.summary["best"]["epoch"] - 1]
    result = made.summary["best"]["test"]
    assert best["test"] == {name: v for name, v in result.items() if name != "confusion"}
    assert sum(map(sum, result["confusion"])) == 400
    assert made.summary["selection"] == {"split": "validation", "metric": "balanced_accuracy"}
    # Loads into the model of the configuration.
    stored = load_checkpoint(made.folder.checkpoint(checkpoint))
    build_model(made.config, 1, 10, 0).load_state_dict(stored["model"])
    assert stored["stage2"]["method"] == method


def test_cached_features_give_what_the_whole_model_gives(run: Run):
    """Epochs between the best and the last are evaluated on cached features alone."""
    dataset = restore_dataset(run)
    model = restore_model(run, dataset.channels, "last", torch.device("cpu"))
    groups = ShotGroups.from_counts(dataset.class_counts.tolist())
    features = feature_split(model, dataset, dataset.test)
    found = evaluate_features(model.classifier, dataset, features, groups)
    expected = evaluate(model, dataset, dataset.test, groups)
    assert with_confusion(found) == with_confusion(expected)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, False])
def test_same_seed_same_bits(stage2: Stage2, cache: bool):
    runs = [
        stage2("crt", epochs=2, cache_features=cache, name=name, **seed)
        for name, seed in (("a", {}), ("b", {"seed": 3}), ("c", {"seed": 4}))
    ]
    weights = [
        load_checkpoint(r.folder.checkpoint("last"))["model"]["classifier.weight"] for r in runs
    ]
    assert torch.equal(weights[0], weights[1])  # null is the run's seed, 3
    assert not torch.equal(weights[0], weights[2])


def test_the_command_line_and_the_stored_options(run: Run, tmp_path: Path):
    arguments = ["stage2", "tau-norm", str(run.folder.path), "--taus", "[0.5, 1.0]"]
    assert run_command([*arguments, "--root", str(tmp_path), "--name", "x"]) == 0
    made = read_run(tmp_path / "x")
    assert made.summary["stage2"]["source"] == str(run.folder.path)
    assert made.summary["stage2"]["options"]["taus"] == [0.5, 1.0]
    stored = made.folder.path / "stage2.yaml"
    config = parse(["stage2", "tau-norm", str(run.folder.path), "--config", str(stored)])[1]
    assert (config.run, config.taus, config.seed) == (str(run.folder.path), [0.5, 1.0], 3)


def _expect(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert run_command(arguments) == 2
    assert text in capsys.readouterr().err


def test_wrong_use_is_explained(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _expect(capsys, ["stage2", "crt", str(tmp_path)], "expected a run folder")
    broken = tmp_path / "broken"
    shutil.copytree(run.folder.path, broken)
    path = broken / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    _expect(capsys, ["stage2", "ncm", str(broken)], f"{path}: no readable checkpoint")
    (broken / "summary.json").unlink()
    _expect(capsys, ["stage2", "ncm", str(broken)], "expected a finished run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]  # nothing half-made


@pytest.mark.parametrize(
    ("method", "option", "value", "text"),
    [
        ("ncm", "epochs", 3, r"epochs: expected the default null .* the method crt or lws or los"),
        ("crt", "taus", [1.0], "use the method tau-norm or logit-adjustment"),
        ("crt", "label_smoothing", 0.5, "use the method los"),
        ("los", "label_smoothing", 1.0, r"label_smoothing: expected a value in \[0, 1\)"),
        ("los", "images_per_class", 2, "use the method crt or lws"),
        ("lws", "images_per_class", 0, "images_per_class: expected a value >= 1"),
        ("tau-norm", "taus", [], "at least one"),
        ("tau-norm", "taus", [-1.0], "taus: expected a value >= 0, got -1.0"),
        ("crt", "epochs", 0, "epochs: expected a value >= 1"),
        ("crt", "lr", 0.0, "lr: expected a value > 0"),
        ("crt", "holdout", 1.0, r"holdout: expected a value in \(0, 1\)"),
        ("lws", "batch_size", 1, "batch_size: expected a value >= 2"),
        ("lws", "momentum", 1.0, r"momentum: expected a value in \[0, 1\)"),
        ("lws", "weight_decay", -1.0, "weight_decay: expected a value >= 0"),
        ("lws", "seed", -1, "seed: expected a value >= 0"),
    ],
)
def test_options_are_checked(method: str, option: str, value: object, text: str):
    with pytest.raises(ConfigError, match=text):
        check_stage2(Stage2Config(method=method, run="x", **{option: value}))


def test_cached_features_are_those_of_a_fixed_backbone():
    config = Stage2Config(method="crt", run="x", cache_features=True, backbone="train")
    with pytest.raises(ConfigError, match="backbone: expected the default 'eval' with cache_feat"):
        check_stage2(config)


@pytest.mark.parametrize(("decay", "expected"), [(1e-4, 1e-4), (5e-4, 5e-4)])
def test_weight_decay_and_rate_are_the_papers(run: Run, decay: float, expected: float):
    """Kang et al. take the first stage's: 5e-4 on ImageNet-LT, 1e-4 on iNaturalist."""
    first = replace(run, config=deepcopy(run.config))
    first.config.optim.weight_decay, first.config.data.batch_size = decay, 512
    config = _resolve(Stage2Config(method="crt", run=""), first)
    assert (config.epochs, config.lr, config.weight_decay) == (10, 0.2, expected)
    given = Stage2Config(method="crt", run="", epochs=30, lr=0.1, weight_decay=0.0)
    config = _resolve(given, first)
    assert (config.epochs, config.lr, config.weight_decay) == (30, 0.1, 0.0)


def test_every_method_may_stand_in_one_table(run: Run, stage2: Stage2):
    """NCM's classifier is another layer, which is no difference in what was set."""
    runs = [run, stage2("ncm"), stage2("logit-adjustment"), stage2("tau-norm")]
    assert runs[1].config.model.classifier == "nearest-mean"
    _, groups = group_runs(runs, None, [])
    assert len(groups) == 4
