"""The typed configuration of a run. Every option has its default, unit and range here, once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from training.errors import ConfigError

DatasetName = Literal["digits-lt"]
WhiteningName = Literal["none", "batchnorm", "eager", "fused"]
LossName = Literal["ce", "logit-adjusted"]


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


@dataclass
class DataConfig:
    """How the data set is split and fed.

    Attributes:
        test_per_class: Images per class held out for the balanced test split; >= 1.
        validation_per_class: Images per class held out of the training data, before the long-tail
            cut, for model selection; >= 1. Balanced, as the validation split of ImageNet-LT is.
        batch_size: Images per training batch; >= 2.
        drop_last: Leave out an epoch's last batch if it is smaller than batch_size. Otherwise it is
            used, but a last batch of one image joins the batch before (whitening needs two rows).
        shift: Largest random shift of the augmentation, in pixels; 0 is no augmentation.
    """

    test_per_class: int = 40
    validation_per_class: int = 10
    batch_size: int = 128
    drop_last: bool = True
    shift: int = 1


@dataclass
class ModelConfig:
    """A residual network for small images.

    Attributes:
        width: Channels of the first stage, doubled in each of the next two; the feature dimension
            is 4 * width; >= 1.
        blocks: Residual blocks per stage; >= 1.
    """

    width: int = 16
    blocks: int = 1


@dataclass
class WhiteningOptions:
    """Options of the layer before the classifier; what a layer does not have must stay unchanged.

    Attributes:
        groups: Channel groups whitened on their own; divides the feature dimension.
            (eager, fused)
        kind: Which whitening. (fused; eager is zca)
        eps: Added to the covariance's diagonal (batchnorm: to the variance); > 0.
        momentum: Weight of the new batch in the running statistics; in (0, 1].
        running: Which running statistic evaluation uses. (fused)
        batch_weight: Weight of the batch covariance against the running one in training; in (0, 1],
            1 is classical batch whitening. (fused)
        shrinkage: Shrinkage of the covariance's eigenvalues to their mean, or null. (fused)
        backend: Which implementation of fastwhiten. (fused)
    """

    groups: int = 1
    kind: Literal["zca", "pca", "cholesky"] = "zca"
    eps: float = 1e-3
    momentum: float = 0.1
    running: Literal["covariance", "matrix"] = "covariance"
    batch_weight: float = 1.0
    shrinkage: Literal["oas", "ledoit-wolf"] | None = None
    backend: str = "auto"


@dataclass
class LossOptions:
    """Options of the loss.

    Attributes:
        tau: Strength of the logit adjustment; >= 0. (logit-adjusted)
    """

    tau: float = 1.0


@dataclass
class OptimConfig:
    """SGD with momentum, linear warm-up, then a cosine to zero.

    Attributes:
        epochs: Passes over the training data; >= 1.
        lr: Peak learning rate; > 0.
        momentum: Heavy-ball momentum; in [0, 1).
        weight_decay: L2 penalty on all parameters; >= 0.
        warmup_epochs: Epochs of the linear warm-up; in [0, epochs].
    """

    epochs: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 5


@dataclass
class OutputConfig:
    """Where results go.

    Attributes:
        root: Folder that holds the run folders.
        name: Name of the run folder; null is <dataset>-<whitening>-<loss>-<seed>.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
        plots: Draw the pictures and write the report.
    """

    root: str = "runs"
    name: str | None = None
    overwrite: bool = False
    plots: bool = True


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        dataset: Which data.
        imbalance_factor: Training images of the most frequent class over those of the rarest; >= 1.
        whitening: The layer between the pooled features and the classifier.
        loss: The training loss.
        seed: Seed from which the seeds of ``seeds`` are derived; >= 0.
        device: auto, cpu, cuda or any device name of torch; auto is cuda where there is one.
        threads: CPU threads of torch; >= 1, or null for torch's choice (all cores). Bits depend on
            it. One is right for images of a few pixels, where more threads mostly wait for each
            other, above all on a machine that has other work.
        deterministic: Same seed, same bits (torch.use_deterministic_algorithms).
        seeds: Seeds of the single sources of randomness.
        data: Splits, batches, augmentation.
        model: The network.
        whitening_options: Options of the layer before the classifier.
        loss_options: Options of the loss.
        optim: Optimiser and schedule.
        output: Where results go.
    """

    dataset: DatasetName = "digits-lt"
    imbalance_factor: float = 50.0
    whitening: WhiteningName = "fused"
    loss: LossName = "logit-adjusted"
    seed: int = 0
    device: str = "auto"
    threads: int | None = 1
    deterministic: bool = True
    seeds: SeedConfig = field(default_factory=SeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    whitening_options: WhiteningOptions = field(default_factory=WhiteningOptions)
    loss_options: LossOptions = field(default_factory=LossOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def run_name(self) -> str:
        """Return the run folder's name, without a suffix."""
        if self.output.name is not None:
            return self.output.name
        return f"{self.dataset}-{self.whitening}-{self.loss}-{self.seed}"


# Which options of WhiteningOptions a layer takes notice of.
WHITENING_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batchnorm": ("eps", "momentum"),
    "eager": ("groups", "eps", "momentum"),
    "fused": tuple(f.name for f in fields(WhiteningOptions)),
}


def validate(config: TrainConfig) -> None:
    """Check ranges and combinations before anything is loaded or written.

    Raises:
        ConfigError: Naming the option, the value that came and the values that are allowed.
    """
    data, optim, options = config.data, config.optim, config.whitening_options
    _check("imbalance_factor", config.imbalance_factor, config.imbalance_factor >= 1, ">= 1")
    _check("seed", config.seed, config.seed >= 0, ">= 0")
    _check("threads", config.threads, config.threads is None or config.threads >= 1, ">= 1 or null")
    for name, value in asdict(config.seeds).items():
        _check(f"seeds.{name}", value, value is None or value >= 0, ">= 0 or null")
    _check("data.test_per_class", data.test_per_class, data.test_per_class >= 1, ">= 1")
    _check(
        "data.validation_per_class",
        data.validation_per_class,
        data.validation_per_class >= 1,
        ">= 1",
    )
    _check("data.batch_size", data.batch_size, data.batch_size >= 2, ">= 2")
    _check("data.shift", data.shift, data.shift >= 0, ">= 0 pixels")
    _check("model.width", config.model.width, config.model.width >= 1, ">= 1")
    _check("model.blocks", config.model.blocks, config.model.blocks >= 1, ">= 1")
    _check("loss_options.tau", config.loss_options.tau, config.loss_options.tau >= 0, ">= 0")
    _check("optim.epochs", optim.epochs, optim.epochs >= 1, ">= 1")
    _check("optim.lr", optim.lr, optim.lr > 0, "> 0")
    _check("optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "in [0, 1)")
    _check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, ">= 0")
    _check(
        "optim.warmup_epochs",
        optim.warmup_epochs,
        0 <= optim.warmup_epochs <= optim.epochs,
        f"in [0, epochs={optim.epochs}]",
    )
    _check("whitening_options.eps", options.eps, options.eps > 0, "> 0")
    _check("whitening_options.momentum", options.momentum, 0 < options.momentum <= 1, "in (0, 1]")
    _check(
        "whitening_options.batch_weight",
        options.batch_weight,
        0 < options.batch_weight <= 1,
        "in (0, 1]",
    )
    features = 4 * config.model.width
    _check(
        "whitening_options.groups",
        options.groups,
        options.groups >= 1 and features % options.groups == 0,
        f"a divisor of the feature dimension {features}",
    )
    _check_unused_options(config)


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{name}: expected a value {allowed}, got {value!r}.")


def _check_unused_options(config: TrainConfig) -> None:
    """An option that the chosen layer would ignore is an error, not a silent no-op."""
    used = WHITENING_OPTIONS[config.whitening]
    default = WhiteningOptions()
    for name, value in asdict(config.whitening_options).items():
        if name not in used and value != getattr(default, name):
            layers = [layer for layer, names in WHITENING_OPTIONS.items() if name in names]
            raise ConfigError(
                f"whitening_options.{name}: expected the default {getattr(default, name)!r} with "
                f"--whitening {config.whitening}, which has no such option, got {value!r}; "
                f"use --whitening {' or '.join(layers)}, or leave the option out."
            )


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain containers (what config.yaml and checkpoints hold)."""
    return asdict(config)
