"""The command ``predict``: the classes of images, by a run or an exported model."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from training.config import DataConfig
from training.config.commands import PredictConfig, check_predict
from training.console import say
from training.data.decode import EXTENSIONS, evaluation_image, open_image, to_tensor
from training.data.files import shown
from training.errors import ConfigError
from training.export.formats import open_file
from training.runs.finished import Run, read_run, restore_dataset, restore_model
from training.runs.folder import output_file, write_text

_BATCH_SIZE = 64


def run_predict(config: PredictConfig, console: Console | None = None) -> Tensor:
    """Print the likeliest classes of each image, and write all probabilities if asked to.

    Returns:
        Probabilities, float32 [N, K], in the order of the images.

    Raises:
        ConfigError: If there is no such run, file or image, or an image cannot be decoded.
    """
    console = console or Console()
    check_predict(config)
    paths = find_images(config.images)
    output = None if config.output is None else output_file(config.output)
    run, facts = _model(config)
    rows = []
    for start in range(0, len(paths), _BATCH_SIZE):
        batch = [prepare(open_image(path), facts) for path in paths[start : start + _BATCH_SIZE]]
        rows.append(run(torch.stack(batch)).float().softmax(1))
    result = torch.cat(rows)  # [N, K]
    names = facts["class_names"]
    best = result.topk(min(config.top, len(names)))
    for path, row, classes in zip(paths, result.tolist(), best.indices.tolist(), strict=True):
        texts = [f"{names[k]} {100 * row[k]:.1f} %" for k in classes]
        say(console, f"{shown(path)}: {', '.join(texts)}")
    if output is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *names])
        for path, row in zip(paths, result.tolist(), strict=True):
            writer.writerow([shown(path), *row])
        write_text(output, text.getvalue())
        say(console, f"  {output}")
    return result


def find_images(given: list[str]) -> list[str]:
    """Return the files that are given, and the images of the folders, sorted; hidden ones not.

    Raises:
        ConfigError: If a folder has no image.
    """
    found: list[str] = []
    for name in given:
        if not os.path.isdir(name):
            found.append(name)  # what is wrong with it is said when it is opened
            continue
        inside: list[str] = []
        for folder, folders, files in os.walk(name):
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            inside.extend(
                os.path.join(folder, file)
                for file in files
                if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            )
        if not inside:
            raise ConfigError(
                f"{name}: expected a folder with images ({', '.join(EXTENSIONS)}), found none."
            )
        found.extend(sorted(inside))
    return found


def _model(config: PredictConfig) -> tuple[Callable[[Tensor], Tensor], Mapping[str, Any]]:
    """Return images [B, C, H, W] -> logits [B, K], and what `export` says of the model."""
    path = Path(config.run)
    if path.is_dir():
        finished = read_run(path)
        facts = {"class_names": finished.summary["class_names"], **_preparation(finished)}
        model = restore_model(finished, facts["channels"], config.checkpoint, torch.device("cpu"))
        run: Callable[[Tensor], Tensor] = model.eval()
    else:
        run, facts = open_file(path)
        if config.checkpoint not in ("last", facts["checkpoint"]):
            raise ConfigError(
                f"checkpoint: expected one of a run, got {config.checkpoint!r} with {path}, which "
                f"holds {facts['checkpoint']!r} alone; leave the option out, or give the run."
            )
    if "white" not in facts:
        raise ConfigError(f"{path}: expected a file with its images' preparation; export it again.")

    def without_gradient(images: Tensor) -> Tensor:
        with torch.no_grad():
            return run(images)

    return without_gradient, facts


def _preparation(run: Run) -> dict[str, Any]:
    """What a run says of its images; of an older run, what its data set says.

    Raises:
        ConfigError: If an older run's data set is not there.
    """
    try:
        found: dict[str, Any] = run.summary.get("preparation") or restore_dataset(run).preparation()
    except ConfigError as error:
        raise ConfigError(
            f"{run.folder.path}: expected a run that says how its images are prepared, got an "
            f"older one, whose data set is needed for that ({error}); put it there, or train again."
        ) from error
    return found


def prepare(image: Image.Image, facts: Mapping[str, Any]) -> Tensor:
    """RGB image -> what the model takes, float32 [C, H, W], as its evaluation had it.

    Args:
        image: Of any size.
        facts: See `LongTailedDataset.preparation`.
    """
    height, width = facts["size"]
    if facts["resize"] is not None:
        pixels = evaluation_image(image, DataConfig(image_size=height, resize=facts["resize"]))
    else:
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = to_tensor(image)
        if facts["channels"] == 1:
            pixels = to_tensor(image.convert("L").convert("RGB"))[:1]
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    return ((pixels * (facts["white"] / 255)).round() - mean) / std
