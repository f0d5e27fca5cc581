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
        ("model.scale", 0.0, "> 0"),
        ("model.classifier", "nearest-mean", "that can be trained (stage2 makes it)"),
        ("mixup", -1.0, ">= 0"),
        ("loss_options.tau", -1.0, ">= 0"),
        ("optim.epochs", 0, ">= 1"),
        ("optim.lr", 0.0, "> 0"),
        ("optim.lr", float("inf"), "> 0"),
        ("optim.momentum", 1.0, "in [0, 1)"),
        ("optim.weight_decay", -0.1, ">= 0"),
        ("optim.warmup_epochs", -1, ">= 0"),
        ("optim.clip_norm", 0.0, "> 0 or null"),
        ("optim.ema_decay", 1.0, "in (0, 1) or null"),
        ("evaluate_every", 0, ">= 1"),
        ("checkpoint_every_steps", 0, ">= 1 or null"),
        ("resume", "", "auto, none or a path"),
        ("whitening_options.eps", 0.0, "> 0"),
        ("whitening_options.momentum", 0.0, "in (0, 1]"),
        ("whitening_options.batch_weight", 0.0, "in (0, 1]"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True, "momentum": 0.0}, "optim.nesterov: expected a value false"),
        ({"milestones": [3]}, "expected the default [] with --optim.schedule cosine"),
        ({"schedule": "multi-step"}, "optim.milestones: expected a value that is a non-empty"),
        (
            {"schedule": "multi-step", "milestones": [5, 3], "factors": [0.1, 0.1]},
            "ascending list of numbers >= 1",
        ),
        (
            {"schedule": "multi-step", "milestones": [0], "factors": [0.1]},
            "ascending list of numbers >= 1",
        ),
        (
            {"schedule": "multi-step", "milestones": [5], "factors": []},
            "optim.factors: expected a value that lists 1 numbers",
        ),
        (
            {"schedule": "multi-step", "milestones": [5], "factors": [0.0]},
            "optim.factors: expected a value that lists 1 numbers",
        ),
    ],
)
def test_optimiser_options_that_do_not_go_together(options, message):
    config = TrainConfig()
    for name, value in options.items():
        setattr(config.optim, name, value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)


def test_only_fused_whitening_is_synchronised():
    with pytest.raises(ConfigError, match="use --whitening fused, or leave the option out"):
        validate(TrainConfig(whitening="eager", sync_whitening=True))
    validate(TrainConfig(whitening="eager", sync_whitening=False))
