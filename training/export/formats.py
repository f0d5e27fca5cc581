"""Writing a model to a file, and running what is in the file."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.config import flatten
from training.config.load import change_config
from training.config.train import TrainConfig
from training.errors import ConfigError
from training.models import WhitenedClassifier, build_model

METADATA_KEY = "fastwhiten"
"""The entry of a file's metadata that holds ours, as JSON."""

ENDINGS = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}


def require(packages: Sequence[str], purpose: str) -> None:
    """Check that packages are installed.

    Raises:
        ConfigError: With the command that installs what is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format: expected {', '.join(packages)} to be installed for {purpose}, "
            f"{', '.join(missing)} missing; run: pip install {' '.join(missing)}"
        )


def write_safetensors(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the state_dict, with the metadata as JSON text."""
    require(["safetensors"], "--format safetensors")
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", METADATA_KEY: json.dumps(metadata)})


def load_safetensors(path: str | Path) -> tuple[WhitenedClassifier, dict[str, Any]]:
    """Return the model of an exported file, in evaluation mode on the CPU, and its metadata.

    The metadata have class_names, mean and std of the images, how they were prepared, and the
    configuration of the run.

    Raises:
        ConfigError: If the file was not written by ``python -m training export``.
    """
    require(["safetensors"], "reading safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a file that `python -m training export` wrote, got: {error!r}."
        ) from error
    config = change_config(TrainConfig(), flatten(metadata["config"]))
    if metadata["folded"]:
        config.whitening = "none"
    model = build_model(config, metadata["channels"], len(metadata["class_names"]), seed=0)
    model.load_state_dict(state)
    return model.eval(), metadata


def write_torch_export(
    path: Path, model: nn.Module, metadata: Mapping[str, Any], example: Tensor
) -> None:
    """Write an exported program that takes images [B, C, H, W] for any B >= 1."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={METADATA_KEY: json.dumps(metadata)})


def write_onnx(path: Path, model: nn.Module, metadata: Mapping[str, Any], example: Tensor) -> None:
    """Write an ONNX model with the input "images" [B, C, H, W] and the output "logits" [B, K]."""
    require(["onnx", "onnxscript", "onnxruntime"], "--format onnx")
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
        program.save(str(path))


def open_file(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Return what a file of any format computes, see `run_file`, and its metadata.

    Raises:
        ConfigError: If the file was not written by ``python -m training export``.
    """
    form = next((form for form, ending in ENDINGS.items() if path.suffix == ending), None)
    if form is None or not path.is_file():
        raise ConfigError(
            f"{path}: expected a run folder, or a file that `python -m training export` wrote "
            f"({', '.join(ENDINGS.values())}), found none."
        )
    if form == "safetensors":
        return load_safetensors(path)
    texts: dict[str, Any] = {METADATA_KEY: ""}
    try:
        run = run_file(path, form, texts)
        metadata: dict[str, Any] = json.loads(texts[METADATA_KEY])
    except ConfigError:
        raise
    except Exception as error:  # of the packages that read it, of any kind
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: expected a file that `python -m training export` wrote, got: {reason}"
        ) from error
    return run, metadata


def run_file(
    path: Path, form: str, texts: dict[str, Any] | None = None
) -> Callable[[Tensor], Tensor]:
    """Return what a file computes: images [B, C, H, W] -> logits [B, K].

    Args:
        path: The file.
        form: Its format.
        texts: Is filled with what the file has under its keys; not of safetensors.
    """
    if form == "safetensors":
        return load_safetensors(path)[0]
    if form == "torch-export":
        module = torch.export.load(path, extra_files=texts).module()
        return lambda images: module(images)
    require(["onnxruntime"], "running an ONNX model")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if texts is not None:
        texts.update(session.get_modelmeta().custom_metadata_map)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress and its deprecation warnings to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
