"""Ranges and combinations of options."""

from __future__ import annotations

import pytest

from training.config import TrainConfig, validate
from training.errors import ConfigError


def test_the_default_is_valid():
    validate(TrainConfig())


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("imbalance_factor", 0.0, ">= 1"),
        ("imbalance_factor", float("nan"), ">= 1"),
        ("seed", -1, ">= 0"),
        ("threads", 0, ">= 1 or null"),
        ("seeds.split", -1, ">= 0 or null"),
        ("data.test_per_class", 0, ">= 1"),
        ("data.validation_per_class", -1, ">= 0"),
        ("data.batch_size", 1, ">= 2"),
        ("data.shift", -1, ">= 0 pixels"),
        ("model.width", 0, ">= 1"),
        ("model.blocks", 0, ">= 1"),
        ("loss_options.tau", -1.0, ">= 0"),
        ("optim.epochs", 0, ">= 1"),
        ("optim.lr", 0.0, "> 0"),
        ("optim.lr", float("inf"), "> 0"),
        ("optim.momentum", 1.0, "in [0, 1)"),
        ("optim.weight_decay", -0.1, ">= 0"),
        ("optim.warmup_epochs", 101, "in [0, epochs=100]"),
        ("whitening_options.eps", 0.0, "> 0"),
        ("whitening_options.momentum", 0.0, "in (0, 1]"),
        ("whitening_options.batch_weight", 0.0, "in (0, 1]"),
        ("whitening_options.groups", 3, "a divisor of the feature dimension 64"),
    ],
)
def test_a_value_out_of_range_names_the_range(path: str, value: float, allowed: str):
    config = TrainConfig()
    *parents, name = path.split(".")
    owner = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value) == f"{path}: expected a value {allowed}, got {value!r}."


@pytest.mark.parametrize(
    ("whitening", "name", "value", "instead"),
    [
        ("none", "eps", 0.1, "batchnorm or eager or cholesky or iternorm or fused"),
        ("batchnorm", "groups", 2, "eager or cholesky or iternorm or fused"),
        ("eager", "kind", "pca", "fused"),
        ("eager", "shrinkage", "oas", "fused"),
        ("fused", "iterations", 7, "iternorm"),
        ("cholesky", "iterations", 7, "iternorm"),
    ],
)
def test_an_option_that_would_be_ignored_is_an_error(whitening, name, value, instead):
    config = TrainConfig(whitening=whitening)
    setattr(config.whitening_options, name, value)
    with pytest.raises(ConfigError, match=f"use --whitening {instead}, or leave the option out"):
        validate(config)
