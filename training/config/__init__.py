"""The typed configuration of a run: a file per section, each option with default, unit and range.

To add an option: a field with its line in the docstring, and its range in the section's ``check_``.
"""

from training.config.commands import AblateConfig, CompareConfig, EvalConfig
from training.config.data import DataConfig
from training.config.datasets import DatasetName
from training.config.loss import LossName, LossOptions
from training.config.model import ModelConfig
from training.config.optim import OptimConfig
from training.config.runtime import OutputConfig, RuntimeConfig, SeedConfig
from training.config.sampler import SamplerName, SamplerOptions, StatisticsBatches
from training.config.stage2 import Stage2Config
from training.config.train import TrainConfig, flatten, is_number, to_dict, validate
from training.config.whitening import (
    WHITENING_OPTIONS,
    WhiteningName,
    WhiteningOptions,
    WhiteningWeights,
)

__all__ = [
    "WHITENING_OPTIONS",
    "AblateConfig",
    "CompareConfig",
    "DataConfig",
    "DatasetName",
    "EvalConfig",
    "LossName",
    "LossOptions",
    "ModelConfig",
    "OptimConfig",
    "OutputConfig",
    "RuntimeConfig",
    "SamplerName",
    "SamplerOptions",
    "SeedConfig",
    "Stage2Config",
    "StatisticsBatches",
    "TrainConfig",
    "WhiteningName",
    "WhiteningOptions",
    "WhiteningWeights",
    "flatten",
    "is_number",
    "to_dict",
    "validate",
]
