"""The command ``export``: a checkpoint's model as a file, verified before it gets its name."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fastwhiten.folding import affine_map
from training.config import to_dict
from training.config.commands import ExportConfig
from training.console import say
from training.data import evaluation_batches
from training.errors import ConfigError
from training.evaluation.diagnose import evenly_spread
from training.evaluation.evaluate import evaluating
from training.export.fold import fold_whitening, freeze_whitening
from training.export.formats import (
    ENDINGS,
    run_file,
    write_onnx,
    write_safetensors,
    write_torch_export,
)
from training.models import WhitenedClassifier
from training.runs.finished import LoadedRun, load_run, read_run

_EXAMPLES = 16
"""Images that the file is verified on."""

_RELATIVE_TOLERANCE = 1e-5
"""About a hundred roundings of float32: convolutions add up in another order elsewhere."""


def run_export(config: ExportConfig, console: Console | None = None) -> Path:
    """Write the file, run it beside the model on test images, and print the difference.

    Returns:
        The file's path.

    Raises:
        ConfigError: If there is no such run or checkpoint, or a package is missing, or the file
            does not compute what the model does (then it is removed).
    """
    console = console or Console()
    loaded = load_run(read_run(config.run), config.checkpoint, torch.device("cpu"))
    path = _output_path(config, loaded)
    path.parent.mkdir(parents=True, exist_ok=True)
    unverified = path.with_name(f".{path.stem}.unverified{path.suffix}")
    images = example_images(loaded)
    try:
        _write(config, loaded, unverified, images)
        difference, tolerance = verify(unverified, config.format, loaded.model, images)
        if not difference <= tolerance:
            raise ConfigError(
                f"{path}: expected logits within {tolerance:.1e} of the model's, got a difference "
                f"of {difference:.1e} on {len(images)} test images; the file was not kept."
            )
        os.replace(unverified, path)
    finally:
        unverified.unlink(missing_ok=True)
    say(
        console,
        f"largest difference to the model's logits on {len(images)} test images: "
        f"{difference:.1e} (allowed: {tolerance:.1e})",
    )
    say(console, f"  {path}")
    return path


def _output_path(config: ExportConfig, loaded: LoadedRun) -> Path:
    ending = ENDINGS[config.format]
    if config.output is None:
        name = f"{config.checkpoint}{'-folded' if config.fold else ''}{ending}"
        return loaded.run.folder.path / "export" / name
    path = Path(config.output)
    if path.suffix != ending:
        raise ConfigError(
            f"output: expected a file name that ends in {ending} for --format {config.format}, "
            f"got {config.output!r}."
        )
    return path


def _write(config: ExportConfig, loaded: LoadedRun, path: Path, images: Tensor) -> None:
    facts = metadata(loaded, config.fold)
    model = loaded.model.eval()
    if config.fold:
        model = fold_whitening(model)
    elif config.format != "safetensors":
        model = freeze_whitening(model)  # no engine elsewhere has an eigensolver
    if config.format == "safetensors":
        write_safetensors(path, model, facts)
    elif config.format == "torch-export":
        write_torch_export(path, model, facts, images[:2])
    else:
        write_onnx(path, model, facts, images[:2])


def example_images(loaded: LoadedRun) -> Tensor:
    """Normalised test images, evenly spread over the split: float32 [B, C, H, W]."""
    dataset = loaded.dataset
    split = dataset.test.take(evenly_spread(len(dataset.test), _EXAMPLES))
    with closing(evaluation_batches(dataset, split, _EXAMPLES)) as batches:
        return next(batches)[0]


def metadata(loaded: LoadedRun, folded: bool) -> dict[str, Any]:
    """What one needs to use the file: classes, preparation of the images, and the run's options."""
    dataset = loaded.dataset
    return {
        "class_names": list(dataset.class_names),
        **dataset.preparation(),
        "preprocessing": (
            "input float32 [batch, channels, height, width]: (pixels - mean) / std per channel, "
            "pixels in the units of the uint8 values. Files are decoded to RGB (one channel: "
            "grey); their shorter side becomes `resize` pixels, then the centre of `size` is cut "
            "out, or where `resize` is null, the image becomes `size`; bilinear, as pillow does "
            "it. `white` is the value that white has then"
        ),
        "output": "logits [batch, classes], unadjusted; the prediction is the largest",
        "checkpoint": loaded.checkpoint,
        "epoch": loaded.epoch,
        "folded": folded,
        "config": to_dict(loaded.run.config),
    }


def verify(path: Path, form: str, model: WhitenedClassifier, images: Tensor) -> tuple[float, float]:
    """Run a file beside the model.

    Returns:
        The largest difference of the logits, and what rounding may do. A relative error in the
        features is carried through |x| |A| |W|^T, without the cancellation that the logits
        themselves have: the tolerance is a small fraction of that.
    """
    run = run_file(path, form)
    with evaluating(model):
        expected = model(images)  # [B, K]
        features = model.features(images)[0].double().abs()  # [B, D]
        # A batch, and a single image: the file must take any number.
        found = torch.cat([run(images), run(images[:1])])
    expected = torch.cat([expected, expected[:1]])
    matrix, shift = affine_map(model.whitening, features.shape[1])
    weight = model.classifier.weight.detach().double().abs()  # [K, D]
    magnitude = (features @ matrix.abs() + shift.abs()) @ weight.T  # [B, K]
    tolerance = _RELATIVE_TOLERANCE * (1.0 + magnitude.max().item())
    return (found - expected).abs().max().item(), tolerance
