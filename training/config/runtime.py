"""How a run is carried out: precision, compilation, processes, evaluation, saving and resuming."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.config.checks import check, check_unused

PrecisionName = Literal["fp32", "bf16", "fp16"]

# What may differ between a run and its continuation: none of these changes what is computed.
RESUMABLE = ("resume", "dry_run", "checkpoint_every", "checkpoint_every_steps")


@dataclass
class RuntimeConfig:
    """How a run is carried out.

    Attributes:
        precision: fp32, or automatic mixed precision in bf16 or fp16 (fp16 with a gradient scaler).
            The whitening layer, the loss and every evaluation compute in float32 all the same.
        channels_last: Keep images and convolution weights in the channels-last memory format. On a
            CPU, small-resnet needs a width of 16 then, since narrower networks corrupt memory.
        compile: Compile the training forward and backward with torch.compile. Evaluation is not
            compiled. Widths on a CPU: as with channels_last.
        cuda_graph: Capture the training step in CUDA graphs and replay them: a launch instead of
            some hundreds, which is what takes the time of a small network on a GPU. One process on
            a GPU, fp32 or bf16, without optim.ema_decay; whitening eager and cholesky wait for the
            device and cannot be captured.
        sync_bn: Batch normalisation over the rows of all processes (torch.nn.SyncBatchNorm); CUDA
            only. Otherwise each process normalises by its own rows, and the running statistics are
            averaged over the processes at the end of each epoch.
        sync_whitening: Whitening over the rows of all processes; null is yes where there are
            several processes. (fused)
        evaluate_every: Epochs between evaluations; >= 1. The last epoch is always evaluated.
        evaluate_test: Evaluate the test split with each evaluation; otherwise only at the end of
            the run, for the last and the best model. It never chooses anything.
        checkpoint_every: Epochs between saves; >= 1. The best epoch so far and the last one of the
            run are saved in any case.
        checkpoint_every_steps: Save also after every so many steps; >= 1, null is after epochs
            only.
        resume: auto continues the run folder of this name if it was made with the same
            configuration, and starts a new run if there is none; none always starts a new run; or
            the path of a run folder or of a checkpoint in it.
        dry_run: Check the configuration and whether the data can be found and split as it says,
            print it, and do nothing.
    """

    precision: PrecisionName = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    sync_bn: bool = False
    sync_whitening: bool | None = None
    evaluate_every: int = 1
    evaluate_test: bool = True
    checkpoint_every: int = 1
    checkpoint_every_steps: int | None = None
    resume: str = "none"
    dry_run: bool = False


def check_runtime(runtime: RuntimeConfig, whitening: str, ema_decay: float | None) -> None:
    """Check the ranges, and what the whole step, or the layer, must be able to do."""
    check("evaluate_every", runtime.evaluate_every, runtime.evaluate_every >= 1, ">= 1")
    check("checkpoint_every", runtime.checkpoint_every, runtime.checkpoint_every >= 1, ">= 1")
    steps = runtime.checkpoint_every_steps
    check("checkpoint_every_steps", steps, steps is None or steps >= 1, ">= 1 or null")
    check("resume", runtime.resume, runtime.resume != "", "auto, none or a path")
    if runtime.cuda_graph:
        where = "with --cuda-graph"
        check("precision", runtime.precision, runtime.precision != "fp16", f"fp32 or bf16 {where}")
        layers = ("eager", "cholesky")
        check("whitening", whitening, whitening not in layers, f"fused or another {where}")
        check("optim.ema_decay", ema_decay, ema_decay is None, f"null {where}")
    if whitening != "fused":
        where = f"with --whitening {whitening}, which has no synchronised statistics"
        sync = runtime.sync_whitening or None  # false says what is the case
        check_unused("sync_whitening", sync, None, where, "--whitening fused")


@dataclass
class SeedConfig:
    """Seeds of the single sources of randomness; null derives one from ``seed``.

    Attributes:
        split: Which images are tested on, validated on and kept by the long-tail cut.
        sampler: Order of the training images.
        augmentation: Random augmentation.
        initialisation: Initial weights.
    """

    split: int | None = None
    sampler: int | None = None
    augmentation: int | None = None
    initialisation: int | None = None


def check_seeds(seeds: SeedConfig) -> None:
    """Check the ranges."""
    for name, value in asdict(seeds).items():
        check(f"seeds.{name}", value, value is None or value >= 0, ">= 0 or null")


@dataclass
class OutputConfig:
    """Where results go.

    Attributes:
        root: Folder that holds the run folders.
        name: Name of the run folder; null is <dataset>-<whitening>-<loss>-<seed>, with classifier,
            mixup, sampler and BET period before the seed where they are not the defaults.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
        plots: Draw the pictures and write the report.
        loggers: What the figures of every epoch are written to: tensorboard and jsonl, into the run
            folder, and classes of yours, as module:Class or {module:Class: {option: value}}.
        diagnostics_every: Epochs from one diagnosis of features, batches and classifier to the
            next, for the loggers; the last epoch is diagnosed too. 0 is never.
    """

    root: str = "runs"
    name: str | None = None
    overwrite: bool = False
    plots: bool = True
    loggers: list[str | dict[str, dict[str, Any]]] = field(default_factory=lambda: ["tensorboard"])
    diagnostics_every: int = 10


def check_output(output: OutputConfig) -> None:
    """Check the ranges."""
    every = output.diagnostics_every
    check("output.diagnostics_every", every, every >= 0, ">= 0 epochs")
