"""One training run: the sections, the names, and what must hold between them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.config.checks import check
from training.config.data import DataConfig, check_data
from training.config.loss import LossName, LossOptions, check_loss
from training.config.model import ModelConfig, check_model
from training.config.optim import OptimConfig, check_optim
from training.config.output import OutputConfig, check_output
from training.config.seeds import SeedConfig, check_seeds
from training.config.whitening import WhiteningName, WhiteningOptions, check_whitening

DatasetName = Literal["digits-lt"]


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


def validate(config: TrainConfig) -> None:
    """Check ranges and combinations before anything is loaded or written.

    Raises:
        ConfigError: Naming the option, the value that came and the values that are allowed.
    """
    check("imbalance_factor", config.imbalance_factor, config.imbalance_factor >= 1, ">= 1")
    check("seed", config.seed, config.seed >= 0, ">= 0")
    check("threads", config.threads, config.threads is None or config.threads >= 1, ">= 1 or null")
    check_seeds(config.seeds)
    check_data(config.data)
    check_model(config.model)
    check_loss(config.loss_options)
    check_optim(config.optim)
    check_output(config.output)
    from training.models.backbones import feature_dim  # imports torch: the parser does without

    check_whitening(config.whitening, config.whitening_options, feature_dim(config.model))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain containers (what config.yaml and checkpoints hold)."""
    return asdict(config)
