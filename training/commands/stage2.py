"""The command ``stage2``: from a finished run to a run folder of its own."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn

from training.commands.eval import with_confusion
from training.config import OutputConfig, Stage2Config, to_dict
from training.config.stage2 import STAGE2_OPTIONS, check_stage2
from training.console import say
from training.data import LongTailedDataset, Split
from training.engine.distributed import select_device
from training.evaluation.evaluate import collect_features, evaluate
from training.evaluation.metrics import Evaluation, ShotGroups
from training.models import WhitenedClassifier
from training.report.progress import print_results
from training.reproducibility import cpu_threads, derive_seed, deterministic_algorithms
from training.runs.checkpoint import save_checkpoint
from training.runs.finished import Run, load_run, read_run
from training.runs.folder import (
    RunFolder,
    append_json_line,
    create_run_folder,
    describe_environment,
    versions,
    write_json,
    write_text,
)
from training.stage2.material import HOLDOUT, build_material
from training.stage2.methods import METHODS, Candidate
from training.stage2.split import ChoiceData, choice_data

METRIC = "balanced_accuracy"


@dataclass(frozen=True)
class Choice:
    """The candidates, their results on the images to choose on, and the best one's position."""

    candidates: list[Candidate]
    results: list[Evaluation]
    best: int


def run_stage2(config: Stage2Config, console: Console | None = None) -> dict[str, Any]:
    """Make, choose and evaluate a classifier; write a run folder; return the summary.

    Args:
        config: The configuration.
        console: Where the closing table is printed; standard output by default.

    Returns:
        The content of summary.json: that of a run, and "stage2" with the method, its options, the
        run it started from, and what was tried.

    Raises:
        ConfigError: If the configuration makes no sense, or there is no such run.
        TrainingDiverged: If the loss is not finite.
    """
    started = time.perf_counter()
    console = console or Console()
    check_stage2(config)
    run = read_run(config.run)
    config = _resolve(config, run)
    device = select_device(config.device or run.config.device)
    with cpu_threads(run.config.threads), deterministic_algorithms(run.config.deterministic):
        loaded = load_run(run, config.checkpoint, device)
        dataset, model = loaded.dataset, loaded.model
        groups = ShotGroups.from_counts(dataset.class_counts.tolist())
        data = choice_data(dataset, config.holdout, derive_seed(config.seed or 0, HOLDOUT))
        choice = choose(config, run, dataset, data, model, groups)
        records = _records(dataset, data, model, choice, groups)  # from here on the test split too
        folder = _write_folder(config, run, device)
        for record in records:
            append_json_line(folder.metrics, _without_confusion(record))
        _save_models(config, run, folder, dataset, model, choice, records)
    summary = _summarise(config, run, data, choice, records)
    summary["wall_seconds"] = time.perf_counter() - started
    write_json(folder.summary, summary)
    print_results(console, summary, folder)
    say(console, _describe(summary))
    return summary


def _resolve(config: Stage2Config, run: Run) -> Stage2Config:
    """Fill in what null means: for training, what the methods' own codes have."""
    batch_size = config.batch_size or run.config.data.batch_size
    epochs, rate, decay = {
        "crt": (10, 0.2 * batch_size / 512, run.config.optim.weight_decay),
        "lws": (5, 0.2 * batch_size / 512, run.config.optim.weight_decay),
        "los": (20, 5e-4 * batch_size / 64, 0.0),
    }.get(config.method, (None, None, None))
    return replace(
        config,
        seed=config.seed if config.seed is not None else run.config.seed,
        batch_size=batch_size,
        epochs=config.epochs or epochs,
        lr=config.lr or rate,
        weight_decay=decay if config.weight_decay is None else config.weight_decay,
    )


def choose(
    config: Stage2Config,
    run: Run,
    dataset: LongTailedDataset,
    data: ChoiceData,
    model: WhitenedClassifier,
    groups: ShotGroups,
) -> Choice:
    """Make all candidates and choose one; the test split is not looked at.

    Best is the highest balanced accuracy on the images to choose on, the lower loss on a tie, the
    earlier candidate after that. Where the candidates are alternatives, as for tau-norm, the best
    is also the last; the others come in the order of their training. The model is left with the
    statistics of the last candidate.
    """
    model.eval()
    features = feature_split(model, dataset, data.choice)
    candidates, results = [], []
    with build_material(config, run, dataset, data, model, config.seed or 0) as material:
        for candidate in METHODS[config.method](config, material):
            candidates.append(candidate)
            if candidate.statistics:  # other features; the model has them already
                features = feature_split(model, dataset, data.choice)
            results.append(evaluate_features(candidate.classifier, dataset, features, groups))
    keys = [(result.balanced_accuracy, -result.loss) for result in results]
    return Choice(candidates, results, keys.index(max(keys)))


def feature_split(model: WhitenedClassifier, dataset: LongTailedDataset, split: Any) -> Split:
    """Whitened features of a split as its images: [N, D, 1, 1], on the data set's device."""
    features = collect_features(model, dataset, split)[1].to(dataset.device)  # [N, D]
    return Split(features[:, :, None, None], split.labels, split.indices)


def evaluate_features(
    classifier: nn.Module, dataset: LongTailedDataset, features: Split, groups: ShotGroups
) -> Evaluation:
    """Evaluate a classifier on features as `evaluate` evaluates a model on images."""
    size = features.images.shape[1]
    zeros = torch.zeros(size, device=dataset.device)  # normalising changes no bit then
    dataset = replace(dataset, mean=zeros, std=torch.ones_like(zeros))
    return evaluate(nn.Sequential(nn.Flatten(), classifier), dataset, features, groups)


def _kept(choice: Choice) -> list[int]:
    """Positions of the candidates that become epochs of the new run.

    These are all that training made on its way to the last one, or the one chosen out of
    alternatives, which then is the last and the best.
    """
    trained = choice.candidates[-1].step > 0
    return list(range(len(choice.candidates))) if trained else [choice.best]


def _records(
    dataset: LongTailedDataset,
    data: ChoiceData,
    model: WhitenedClassifier,
    choice: Choice,
    groups: ShotGroups,
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; last and best are evaluated as whole models, as `eval` does."""
    features = feature_split(model, dataset, dataset.test)
    kept = _kept(choice)
    records = []
    for epoch, position in enumerate(kept, start=1):
        candidate = choice.candidates[position]
        if position in (kept[-1], choice.best) or candidate.statistics:
            candidate.install(model)
            validation = evaluate(model, dataset, data.choice, groups)
            test = evaluate(model, dataset, dataset.test, groups)
        else:
            validation = choice.results[position]
            test = evaluate_features(candidate.classifier, dataset, features, groups)
        records.append(
            {
                "epoch": epoch,
                "step": candidate.step,
                "learning_rate": candidate.learning_rate,
                "train": candidate.train,
                "evaluated": True,
                "validation": with_confusion(validation),
                "test": with_confusion(test),
                "train_seconds": candidate.seconds,
                "images_per_second": candidate.images / candidate.seconds,
            }
        )
    return records


def _without_confusion(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl: the summary alone has the confusion matrices."""
    splits = {
        split: {name: value for name, value in record[split].items() if name != "confusion"}
        for split in ("validation", "test")
    }
    return {**record, **splits}


def _write_folder(config: Stage2Config, run: Run, device: torch.device) -> RunFolder:
    """Make the run folder with everything but results."""
    output = OutputConfig(
        root=config.root or str(run.folder.path.parent),
        name=config.name or f"{run.folder.path.name}-{config.method}",
        overwrite=config.overwrite,
        plots=False,
    )
    folder = create_run_folder(str(output.name), output)
    first = {**to_dict(run.config), "output": asdict(output)}
    if config.distance == "cl2n" and config.method == "ncm":
        first["model"]["classifier"] = "nearest-mean"
    write_text(folder.config, yaml.safe_dump(first, sort_keys=False))
    unused = {n for names in STAGE2_OPTIONS.values() for n in names}
    unused -= set(STAGE2_OPTIONS[config.method])
    second = {key: value for key, value in asdict(config).items() if key not in unused}
    write_text(folder.path / "stage2.yaml", yaml.safe_dump(second, sort_keys=False))
    write_json(folder.environment, describe_environment(device))
    return folder


def _save_models(
    config: Stage2Config,
    run: Run,
    folder: RunFolder,
    dataset: LongTailedDataset,
    model: WhitenedClassifier,
    choice: Choice,
    records: list[dict[str, Any]],
) -> None:
    kept = _kept(choice)
    for name, position in (("last", kept[-1]), ("best", choice.best)):
        record = records[kept.index(position)]
        choice.candidates[position].install(model)
        save_checkpoint(
            folder.checkpoint(name),
            model,
            config=to_dict(run.config),
            seeds=asdict(run.seeds),
            epoch=record["epoch"],
            step=record["step"],
            metrics=_without_confusion(record),
            class_counts=dataset.class_counts,
            stage2={"method": config.method, **choice.candidates[position].detail},
        )


def _summarise(
    config: Stage2Config,
    run: Run,
    data: ChoiceData,
    choice: Choice,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    """The content of summary.json, but for the wall time: what the run had, with new results."""
    kept = _kept(choice)
    results = {}
    for name, position in (("last", kept[-1]), ("best", choice.best)):
        record = records[kept.index(position)]
        results[name] = {key: record[key] for key in ("epoch", "train", "validation", "test")}
    tried = [
        {**candidate.detail, METRIC: result.balanced_accuracy, "loss": result.loss}
        for candidate, result in zip(choice.candidates, choice.results, strict=True)
    ]
    names = ("checkpoint", "seed", *STAGE2_OPTIONS[config.method])
    seconds = sum(candidate.seconds for candidate in choice.candidates)
    return {
        **run.summary,
        "selection": {"split": data.name, "metric": METRIC},
        **results,
        "images_per_second": sum(c.images for c in choice.candidates) / seconds,
        "versions": versions(),
        "stage2": {
            "method": config.method,
            "options": {name: getattr(config, name) for name in names},
            "source": str(run.folder.path),
            "first_classifier": run.config.model.classifier,
            **choice.candidates[choice.best].detail,
            "candidates": tried,
        },
    }


def _describe(summary: dict[str, Any]) -> str:
    stage2 = summary["stage2"]
    text = f"stage 2: {stage2['method']} from {stage2['source']}"
    if "tau" in stage2:
        split = summary["selection"]["split"]
        text += f", tau = {stage2['tau']:g} of {len(stage2['candidates'])} (chosen on {split})"
    return text
