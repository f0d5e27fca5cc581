"""Looking into a finished run: its diagnostics, its pictures, its model in another format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config.arguments import POSITIONAL
from training.config.checks import check

CheckpointName = Literal["last", "best"]


@dataclass
class DiagnoseConfig:
    """Diagnostics of the features, the batches and the classifier of a run's checkpoint.

    Attributes:
        run: The run folder.
        checkpoint: Which checkpoint of the run; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        split: Whose features; those of the training images are taken without augmentation.
        device: auto, cpu, cuda or any device name of torch.
        hessian_rows: Images that the condition number of the classifier's Hessian is computed from,
            evenly spread over the split; >= 2. Its cost grows with them.
    """

    run: str = field(metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    split: Literal["train", "validation", "test"] = "test"
    device: str = "auto"
    hessian_rows: int = 4096


def check_diagnose(config: DiagnoseConfig) -> None:
    """Check the ranges."""
    check("hessian_rows", config.hessian_rows, config.hessian_rows >= 2, ">= 2")


@dataclass
class PlotConfig:
    """The pictures of a run (PNG and SVG) and its report in one HTML file.

    Attributes:
        run: The run folder.
        checkpoint: Whose features and predictions are drawn; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        split: On which images.
        device: auto, cpu, cuda or any device name of torch.
    """

    run: str = field(metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    split: Literal["validation", "test"] = "test"
    device: str = "auto"


@dataclass
class PredictConfig:
    """The classes of images, by a run or an exported model, which brings their preparation along.

    Attributes:
        run: The run folder, or a file that `export` has written; the data set is not needed.
        images: Image files, and folders whose images are taken, those of folders inside too. Their
            background is to be that of the training images: digits-lt's is black.
        checkpoint: Which checkpoint of a run; a file has one.
        top: How many classes to print of each image, the likeliest first; >= 1.
        output: File for all probabilities as CSV, a line per image; null writes none.
    """

    run: str = field(metadata=POSITIONAL)
    images: list[str] = field(default_factory=list, metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    top: int = 1
    output: str | None = None


def check_predict(config: PredictConfig) -> None:
    """Check the ranges."""
    check("top", config.top, config.top >= 1, ">= 1")
    check("images", config.images, bool(config.images), "with at least one image file or folder")


@dataclass
class ExportConfig:
    """The model of a run's checkpoint, in evaluation mode, for use without this package.

    Attributes:
        run: The run folder.
        format: safetensors (weights, loaded by `training.export.load_safetensors`), torch-export
            (a .pt2 program) or onnx; the last two take batches of any size.
        checkpoint: Which checkpoint of the run; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        fold: Fold the whitening layer into the classifier's weight and bias. The logits are the
            same up to rounding.
        output: The file to write; null is export/<checkpoint>[-folded].<ending> in the run folder.
    """

    run: str = field(metadata=POSITIONAL)
    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    checkpoint: CheckpointName = "last"
    fold: bool = False
    output: str | None = None
