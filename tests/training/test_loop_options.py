"""Precision, averages, clipping, schedules, decay and what is evaluated when."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import training.commands.train
from training.cli import parse, run
from training.commands.train import run_train
from training.config import OptimConfig, TrainConfig
from training.data import build_dataset
from training.engine.meter import Meter
from training.engine.optim import RateSchedule, build_optimizer, parameter_groups, schedule_factor
from training.engine.trainer import Trainer, build_trainer
from training.errors import ConfigError, TrainingDiverged
from training.report.progress import build_reporter
from training.reproducibility import random_states, resolve_seeds, seeded_globals
from training.runs.checkpoint import load_checkpoint

CPU = torch.device("cpu")


def _trainer(config: TrainConfig) -> Trainer:
    seeds = resolve_seeds(config.seed, config.seeds)
    return build_trainer(config, build_dataset(config, seeds.split), seeds, CPU)


def _first_loss(config: TrainConfig) -> float:
    losses: list[float] = []
    _trainer(config).run_epoch(losses.append)
    return losses[0]


def _run(config: TrainConfig) -> tuple[dict, Path, str]:
    console = Console(file=io.StringIO(), width=120)
    config.output.name = "run"
    config.output.overwrite = True
    return run_train(config, console), Path(config.output.root) / "run", console.file.getvalue()


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("whitening", ["eager", "fused"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_computes_in_it_and_whitens_in_float32(
    config: TrainConfig, precision: str, whitening: str
):
    config.whitening = whitening
    exact = _first_loss(config)
    config.precision = precision
    trainer = _trainer(config)
    seen = []
    trainer.model.backbone.stem[0].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    trainer.model.whitening.register_forward_hook(
        lambda m, x, y: seen.extend([x[0].dtype, y.dtype])
    )
    losses: list[float] = []
    trainer.run_epoch(losses.append)
    low = torch.bfloat16 if precision == "bf16" else torch.float16
    assert seen[:3] == [low, torch.float32, torch.float32]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses[0] != exact  # it is another precision
    assert losses[0] == pytest.approx(exact, rel=0.05)
    assert losses[-1] < losses[0]
    assert trainer.precision.scaler.is_enabled() == (precision == "fp16")


def test_an_overflow_of_fp16_skips_the_step_and_halves_the_scale(config: TrainConfig):
    config.precision, config.data.batch_size = "fp16", 342
    trainer = _trainer(config)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = copy.deepcopy(dict(trainer.model.named_parameters()))
    trainer.run_epoch()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert trainer.precision.scaler.get_scale() == 2.0**39


def test_channels_last_is_the_same_up_to_rounding(config: TrainConfig):
    config.model.width = 16  # see training/engine/memory_format.py
    plain = _first_loss(config)
    config.channels_last = True
    trainer = _trainer(config)
    weight = trainer.model.backbone.stages[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    trainer.model.backbone.register_forward_pre_hook(
        lambda m, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    losses: list[float] = []
    trainer.run_epoch(losses.append)
    assert all(seen)
    assert losses[0] == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_compiled_training_is_the_same_up_to_rounding(config: TrainConfig):
    config.model.width = 16  # see training/engine/memory_format.py
    plain = _first_loss(config)
    config.compile = True
    trainer = _trainer(config)
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    trainer.forward = torch.compile(trainer.model, backend=counter)
    losses: list[float] = []
    trainer.run_epoch(losses.append)
    assert counter.frame_count >= 1
    assert losses[0] == pytest.approx(plain, rel=1e-5)
    assert all("_orig_mod" not in name for name in trainer.model.state_dict())


def test_the_option_compile_compiles(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    compiled = []
    config.model.width = 16
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    trainer = _trainer(replace(config, compile=True))
    assert compiled == [trainer.model] and trainer.forward is trainer.model


def test_moving_average_by_hand(config: TrainConfig):
    config.optim.ema_decay = 0.75
    trainer = _trainer(config)
    expected: dict[str, torch.Tensor] = {}
    take = trainer.training_step

    def step(examples):
        result = take(examples)
        for name, value in trainer.model.state_dict().items():
            if name not in expected or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = 0.75 * expected[name] + 0.25 * value
        return result

    trainer.training_step = step
    trainer.run_epoch()
    average = trainer.average.model.state_dict()
    assert average.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(average[name].double(), value.double(), atol=1e-6), name
    assert not torch.equal(average["classifier.weight"], trainer.model.classifier.weight)
    # Counts are copied, not averaged to 0.
    assert average["backbone.stem.1.num_batches_tracked"] == trainer.step


def test_the_average_is_evaluated_and_saved_beside_the_model(config: TrainConfig):
    config.whitening = "fused"  # its cached matrix is one buffer more after an evaluation
    config.optim.ema_decay = 0.5
    summary, folder, _ = _run(config)
    record = _records(folder)[-1]
    assert record["ema"]["test"].keys() == record["test"].keys()
    assert record["ema"]["validation"]["loss"] != record["validation"]["loss"]
    assert summary["last"]["ema"]["test"]["loss"] == record["ema"]["test"]["loss"]
    state = load_checkpoint(folder / "checkpoints/last.pt")
    assert state["ema"]["updates"] == state["step"] == 10
    assert state["ema"]["model"].keys() == state["model"].keys()


def test_clipping_limits_the_gradient(config: TrainConfig):
    config.optim.clip_norm = 0.01
    trainer = _trainer(config)
    norms = []
    step = trainer.optimizer.step

    def measured(*arguments, **options):
        grads = [p.grad.norm() for p in trainer.model.parameters()]
        norms.append(torch.stack(grads).norm().item())
        return step(*arguments, **options)

    trainer.optimizer.step = measured
    trainer.run_epoch()
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)


def test_the_schedule_of_ldam_by_hand():
    """Their code, epochs from 1: lr * e / 5 up to 5; * 0.01 above 160; * 0.0001 above 180."""
    config = OptimConfig(
        epochs=200,
        warmup_epochs=5,
        warmup_unit="epoch",
        schedule="multi-step",
        milestones=[160, 180],
        factors=[0.01, 0.01],
    )
    for step in range(0, 200 * 3):
        epoch = step // 3 + 1
        expected = epoch / 5 if epoch <= 5 else 1e-4 if epoch > 180 else 1e-2 if epoch > 160 else 1
        assert schedule_factor(step, config, 3) == pytest.approx(expected)


def test_the_optimiser_follows_the_schedule():
    config = OptimConfig(epochs=3, lr=2.0, warmup_epochs=0, schedule="multi-step")
    config.milestones, config.factors = [1, 2], [0.5, 0.1]
    optimizer, schedule = build_optimizer(torch.nn.Linear(1, 1), config, 2)
    rates = []
    for step in range(6):
        assert schedule.set(step) == schedule.rate(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2, 2, 1, 1, 0.1, 0.1])


def test_every_group_follows_the_schedule_from_its_own_peak():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups)
    assert RateSchedule(optimizer, lambda step: 0.5**step).set(3) == 0.125
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.0125]


@pytest.mark.parametrize("skipped", [[0, 1], [2], [4]])
def test_a_step_that_is_skipped_counts(config: TrainConfig, skipped: list[int]):
    """An overflow in fp16 leaves the weights as they are; the rates stay those of the batches."""
    config.precision, config.optim.warmup_epochs, config.optim.ema_decay = "fp16", 0, 0.5
    trainer = _trainer(config)
    expected = [config.optim.lr * schedule_factor(step, config.optim, 5) for step in range(5)]
    backward, updates, weights = itertools.count(), {}, []

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 0 if next(backward) in skipped else gradient

    def before_the_update(optimizer: torch.optim.Optimizer, *_: object) -> None:
        updates[trainer.step] = optimizer.param_groups[0]["lr"]

    trainer.model.classifier.weight.register_hook(overflow)
    trainer.optimizer.register_step_pre_hook(before_the_update)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = lambda: weights.append(trainer.model.classifier.weight.detach().clone())  # noqa: E731
        after()
        statistics = trainer.run_epoch(after_step=after)
    done = [step for step in range(5) if step not in skipped]
    assert updates == pytest.approx({step: expected[step] for step in done})
    for step in range(5):
        assert torch.equal(weights[step + 1], weights[step]) == (step in skipped)
    assert trainer.step == trainer.average.updates == 5
    assert statistics.learning_rate == pytest.approx(expected[4])
    assert trainer.precision.scaler.get_scale() == 2.0 ** (16 - len(skipped))


def test_decay_leaves_out_what_has_one_dimension():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    config = OptimConfig(weight_decay=0.25)
    assert [g["weight_decay"] for g in parameter_groups(model, config)] == [0.25]
    config.decay_all = False
    groups = parameter_groups(model, config)
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.25), (3, 0.0)]
    assert groups[0]["params"][0] is model[0].weight


def test_evaluation_every_second_epoch_and_test_at_the_end(config: TrainConfig):
    config.optim.epochs, config.evaluate_every, config.evaluate_test = 5, 2, False
    config.output.plots = True
    summary, folder, text = _run(config)
    records = _records(folder)
    assert [r["evaluated"] for r in records] == [False, True, False, True, True]
    assert [r["validation"] is not None for r in records] == [False, True, False, True, True]
    assert [r["test"] is not None for r in records] == [False] * 4 + [True]
    assert summary["best"]["epoch"] in (2, 4, 5)
    for kind in ("last", "best"):
        assert sum(map(sum, summary[kind]["test"]["confusion"])) == 400
        assert 0 <= summary[kind]["test"]["balanced_accuracy"] <= 1
    assert "validation" not in text.splitlines()[0]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["validation.loss"] != "" for row in rows] == [False, True, False, True, True]


def test_saves_every_second_epoch_the_best_and_the_last(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    config.optim.epochs, config.evaluate_every, config.checkpoint_every = 7, 5, 3
    saved = []
    monkeypatch.setattr(
        training.commands.train.Run,
        "save",
        lambda run, best: saved.append((run.trainer.step, best)),
    )
    monkeypatch.setattr(training.commands.train, "finish_run", lambda *arguments: {})
    _run(config)
    assert [step // 5 for step, _ in saved] == [3, 5, 6, 7]
    assert [best for _, best in saved][:3] == [False, True, False]
    config.checkpoint_every = 0
    with pytest.raises(ConfigError, match="checkpoint_every: expected a value >= 1"):
        _run(config)


def test_the_test_result_of_the_best_model_is_that_of_its_epoch(config: TrainConfig):
    config.optim.epochs = 3
    every = _run(config)[0]
    config.evaluate_test = False
    end = _run(config)[0]
    assert json.dumps(every["best"]) == json.dumps(end["best"])


def test_confusion_is_in_the_summary_and_not_in_the_lines(config: TrainConfig):
    _, folder, _ = _run(config)
    best = json.loads((folder / "summary.json").read_text())["best"]["test"]
    diagonal = [best["confusion"][k][k] / 40 for k in range(10)]
    assert best["per_class"] == pytest.approx(diagonal)
    assert all("confusion" not in r["test"] for r in _records(folder))


def test_without_a_validation_split_best_is_last(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    def without_validation(*arguments):
        dataset = build_dataset(*arguments)
        empty = dataset.validation
        empty = replace(
            empty, images=empty.images[:0], labels=empty.labels[:0], indices=empty.indices[:0]
        )
        return replace(dataset, validation=empty)

    monkeypatch.setattr(training.commands.train, "build_dataset", without_validation)
    summary, folder, text = _run(config)
    assert summary["selection"] == {"split": "none", "metric": None}
    assert summary["best"] == summary["last"] and summary["best"]["validation"] is None
    assert load_checkpoint(folder / "checkpoints/best.pt")["epoch"] == 2
    assert "best = last: the data set has no validation split" in text
    assert "  test " in text.splitlines()[1]


def test_sync_bn_needs_cuda(config: TrainConfig):
    with pytest.raises(ConfigError, match="sync_bn: expected false on cpu"):
        run_train(replace(config, sync_bn=True, device="cpu"))


def test_dry_run_prints_the_configuration_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "runs"
    assert run(["train", "--dry-run", "--optim.lr=0.3", f"--output.root={root}"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["lr"] == 0.3 and printed["dry_run"] is True
    assert not root.exists()
    assert run(["train", "--dry-run", "--optim.lr=-1"]) == 2


def test_dry_run_looks_for_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for root in (tmp_path, tmp_path / "nowhere"):
        assert run(["train", "--dry-run", "--dataset=image-folder", f"--data.root={root}"]) == 2
        assert str(root) in capsys.readouterr().err
    assert run(["train", "--dry-run", "--dataset=cifar10-lt", f"--data.root={tmp_path}"]) == 2


def test_a_run_that_is_shortened_says_what_it_leaves_out(config: TrainConfig):
    config.optim.epochs, config.optim.warmup_epochs = 2, 5
    _, folder, text = _run(config)
    assert "a run of 2 epochs has no warm-up of 5: it takes 1" in text
    first, second = (record["learning_rate"] for record in _records(folder))
    assert first == config.optim.lr > 2 * second
    late = {"schedule": "multi-step", "milestones": [1, 2, 180], "factors": [0.5, 0.1, 0.1]}
    config.optim = replace(config.optim, warmup_epochs=0, **late)
    _, folder, text = _run(config)
    assert "a run of 2 epochs ends before its rate changes at 2, 180" in text
    first, second = (record["learning_rate"] for record in _records(folder))
    assert first == config.optim.lr == 2 * second


@pytest.mark.parametrize(
    "arguments", [["--compile"], ["--compile", "--seed=1"], ["--compile", "true"]]
)
def test_a_flag_may_stand_alone(arguments: list[str]):
    assert parse(["train", *arguments])[1].compile is True
    assert parse(["train", "--compile", "false"])[1].compile is False
    assert parse(["train", "--output.overwrite", *arguments])[1].output.overwrite is True


def test_the_first_step_that_diverged_is_named_even_if_read_late(config: TrainConfig):
    meter = Meter.on(CPU)
    labels = torch.tensor([0])
    meter.step.fill_(6)
    for loss in (1.0, math.inf, 1.0, math.nan):
        meter.add(torch.tensor(loss), torch.zeros(1, 2), labels)
    processes = _trainer(config).processes
    with pytest.raises(TrainingDiverged, match=r"in step 8 \(epoch 3\)"):
        meter.check(3, processes)


def test_global_generators_are_seeded_inside_and_as_before_outside():
    before = random_states(CPU)
    drawn = []
    for rank in (0, 0, 1):
        with seeded_globals(CPU, 3, rank):
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]
    after = random_states(CPU)
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]


def test_the_bar_of_a_terminal_starts_where_the_run_is(config: TrainConfig):
    _, folder, _ = _run(config)
    record = _records(folder)[-1]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    reporter = build_reporter(console, epochs=2, steps_per_epoch=5)
    reporter.start(7)
    reporter.epoch(record)
    for loss in (math.nan, 1.25):  # a GPU is not waited for
        reporter.step(loss)
        reporter._progress.refresh()
    reporter.close()
    assert "epoch 2/2" in (shown := console.file.getvalue())
    assert f"step loss 1.250  epoch loss {record['train']['loss']:.3f}  val" in shown
    assert "nan" not in shown
