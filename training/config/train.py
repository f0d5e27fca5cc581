"""One training run: the sections, the names, and what must hold between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.config.checks import check, check_unused
from training.config.data import DataConfig, check_data
from training.config.datasets import DATASETS, DatasetName
from training.config.loss import LossName, LossOptions, check_loss
from training.config.model import ModelConfig, check_classifier, check_model
from training.config.optim import OptimConfig, check_optim
from training.config.runtime import (
    OutputConfig,
    RuntimeConfig,
    SeedConfig,
    check_output,
    check_runtime,
    check_seeds,
)
from training.config.sampler import (
    SamplerName,
    SamplerOptions,
    StatisticsBatches,
    check_sampler,
    check_statistics_batches,
    check_statistics_layers,
)
from training.config.whitening import (
    WhiteningName,
    WhiteningOptions,
    WhiteningWeights,
    check_whitening,
    check_whitening_weights,
)


@dataclass
class TrainConfig(RuntimeConfig):
    """One training run; the options of `RuntimeConfig` are at the top level too.

    Attributes:
        dataset: Which data. digits-lt needs no files; the others have theirs in ``data.root``.
        imbalance_factor: Training images of the most frequent class over those of the rarest; >= 1.
            null is 50, but image-folder and list-files are taken as they are. To be left out where
            ``data.imbalance_type`` is natural.
        whitening: The layer between the pooled features and the classifier.
        loss: The training loss.
        sampler: Which images make up a batch. b3rs is the Block-based Relatively Balanced Batch
            Sampler (GRBS in the successor paper).
        bet_period: Batch Embedded Training: one batch of ``sampler`` after every bet_period - 1
            instance-balanced ones; >= 1, 1 is ``sampler`` alone, 0 stands for infinity (never).
            Null does without: every batch comes from ``sampler``.
        mixup: Every batch is mixed with itself in another order, images and losses, in a proportion
            from Beta(mixup, mixup); > 0, or 0 for none.
        whitening_weights: Weights of the images in the whitening's batch statistics; class-balanced
            gives every class of a batch the same weight, instead of every image. (fused)
        statistics_batches: Which batches of Batch Embedded Training update running statistics; the
            others are whitened with their own, and leave the running ones as they are.
        statistics_layers: Where statistics_batches holds: in the whitening layer (batchnorm
            included) alone, or in "all" layers, with the batch normalisation of backbone and
            classifier.
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
        sampler_options: Options of the sampler.
        optim: Optimiser and schedule.
        output: Where results go.
    """

    dataset: DatasetName = "digits-lt"
    imbalance_factor: float | None = None
    whitening: WhiteningName = "fused"
    loss: LossName = "logit-adjusted"
    sampler: SamplerName = "instance"
    bet_period: int | None = None
    mixup: float = 0.0
    whitening_weights: WhiteningWeights = "none"
    statistics_batches: StatisticsBatches = "all"
    statistics_layers: Literal["whitening", "all"] = "whitening"
    seed: int = 0
    device: str = "auto"
    threads: int | None = 1
    deterministic: bool = True
    seeds: SeedConfig = field(default_factory=SeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    whitening_options: WhiteningOptions = field(default_factory=WhiteningOptions)
    loss_options: LossOptions = field(default_factory=LossOptions)
    sampler_options: SamplerOptions = field(default_factory=SamplerOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def run_name(self) -> str:
        """Return the run folder's name, without a suffix."""
        if self.output.name is not None:
            return self.output.name
        parts: list[str] = [self.dataset, self.whitening, self.loss]
        if self.model.classifier is not None:
            parts.append(f"{self.model.classifier}-classifier")
        if self.mixup:
            parts.append("mixup")
        if self.sampler != "instance":
            parts.append(self.sampler)
        if self.bet_period is not None:
            parts.append(f"bet{self.bet_period}")
        return "-".join([*parts, str(self.seed)])


def validate(config: TrainConfig) -> None:
    """Check ranges and combinations before anything is loaded or written.

    What depends on the model's width is left to `training.models.check_groups`.

    Raises:
        ConfigError: Naming the option, the value that came and the values that are allowed.
    """
    known = ", ".join(DATASETS)
    check("dataset", config.dataset, config.dataset in DATASETS, f"out of {known}")
    factor = config.imbalance_factor
    check("imbalance_factor", factor, factor is None or factor >= 1, ">= 1")
    check("seed", config.seed, config.seed >= 0, ">= 0")
    check("threads", config.threads, config.threads is None or config.threads >= 1, ">= 1 or null")
    check_seeds(config.seeds)
    check_data(config.data)
    check_model(config.model)
    check_classifier(config.model, config.loss)
    check_loss(config.loss, config.loss_options, config.optim.epochs)
    check_optim(config.optim)
    check_output(config.output)
    check_runtime(config, config.whitening, config.optim.ema_decay)
    _check_mixup(config)
    check_whitening(config.whitening, config.whitening_options)
    check_whitening_weights(config.whitening, config.whitening_weights, config.whitening_options)
    options = config.sampler_options
    check_sampler(config.sampler, config.bet_period, options, config.optim.epochs)
    check_statistics_batches(config.statistics_batches, config.sampler, config.bet_period, options)
    check_statistics_layers(config.statistics_layers, config.statistics_batches, config.whitening)


def _check_mixup(config: TrainConfig) -> None:
    check("mixup", config.mixup, config.mixup >= 0, ">= 0")
    if config.cuda_graph:
        check_unused("mixup", config.mixup, 0.0, "with --cuda-graph, which repeats one order")
    if config.whitening_weights != "none":
        where = "with whitening_weights, which need images of one class each"
        check_unused("mixup", config.mixup, 0.0, where)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain containers (what config.yaml and checkpoints hold)."""
    return asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Turn nested mappings into one, their names joined.

    Example:
        >>> flatten({"seed": 1, "optim": {"lr": 0.1}})
        {'seed': 1, 'optim.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{name}{separator}", separator))
        else:
            found[prefix + name] = value
    return found


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
