"""Sampler, loss and whitening sections: ranges, unused options, and names of runs."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import pytest

from training.config import TrainConfig, validate
from training.config.loss import LOSS_OPTIONS, LossOptions
from training.config.sampler import SamplerOptions
from training.config.whitening import WHITENING_OPTIONS, WhiteningOptions
from training.errors import ConfigError


def _set(config: TrainConfig, options: dict[str, object]) -> TrainConfig:
    for path, value in options.items():
        *parents, name = path.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        assert hasattr(owner, name)
        setattr(owner, name, value)
    return config


B3RS = {"sampler": "b3rs"}


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("sampler_options.blocks", 0, ">= 1"),
        ("sampler_options.block_sizes", [], "null or a list of numbers >= 1"),
        ("sampler_options.block_sizes", [3, 0], "null or a list of numbers >= 1"),
        ("sampler_options.block_weights", [1.0], "null or a list of 5 numbers > 0, one per block"),
        (
            "sampler_options.block_weights",
            [1.0, 1.0, 1.0, 1.0, math.inf],
            "null or a list of 5 numbers > 0, one per block",
        ),
        ("sampler_options.q", 1.5, "in [0, 1]"),
        ("sampler_options.q", math.nan, "in [0, 1]"),
        ("sampler_options.r", -0.5, "in [0, 1]"),
        ("sampler_options.b_min", -1, ">= 0"),
        ("sampler_options.images_per_class", 0, ">= 1"),
        ("sampler_options.bet_start_epoch", 0, "in [1, epochs=100]"),
        ("sampler_options.bet_start_epoch", 101, "in [1, epochs=100]"),
        ("bet_period", -1, ">= 0 or null"),
        ("loss_options.gamma", -1.0, ">= 0"),
        ("loss_options.beta", 1.0, "in [0, 1)"),
        ("loss_options.max_m", 0.0, "> 0"),
        ("loss_options.s", 0.0, "> 0"),
        ("loss_options.drw_epoch", 0, "in [1, epochs=100] or null"),
        ("loss_options.drw_epoch", 101, "in [1, epochs=100] or null"),
        ("whitening_options.iterations", 0, ">= 1"),
    ],
)
def test_a_value_out_of_range_names_the_range(path: str, value: object, allowed: str):
    config = _set(TrainConfig(sampler="b3rs"), {path: value})
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value) == f"{path}: expected a value {allowed}, got {value!r}."


# A value of each option that is not its default, and in range.
CHANGED = {
    "sampler_options": {
        "blocks": 4,
        "block_rule": "images",
        "block_sizes": [5, 5],
        "block_weights": [1.0] * 5,
        "q": 0.25,
        "r": 0.5,
        "b_min": 2,
        "reading": "classes-images",
        "images_per_class": 2,
        "bet_start_epoch": 2,
        "bet_schedule": "random",
    },
    "loss_options": {
        "tau": 2.0,
        "prior": "effective",
        "gamma": 2.0,
        "beta": 0.5,
        "max_m": 0.25,
        "s": 16.0,
        "drw_epoch": 2,
    },
}


def test_the_table_has_every_option():
    assert set(CHANGED["sampler_options"]) == {f.name for f in fields(SamplerOptions)}
    assert set(CHANGED["loss_options"]) == {f.name for f in fields(LossOptions)}
    for section, default in (
        ("sampler_options", SamplerOptions()),
        ("loss_options", LossOptions()),
    ):
        for name, value in CHANGED[section].items():
            assert asdict(default)[name] != value


@pytest.mark.parametrize("loss", list(LOSS_OPTIONS))
@pytest.mark.parametrize("name", list(CHANGED["loss_options"]))
def test_loss_options_are_used_or_refused(loss: str, name: str):
    config = _set(TrainConfig(loss=loss), {f"loss_options.{name}": CHANGED["loss_options"][name]})
    if name in LOSS_OPTIONS[loss]:
        validate(config)
        return
    with pytest.raises(ConfigError, match=f"loss_options.{name}: expected the default .* --loss"):
        validate(config)


@pytest.mark.parametrize("name", list(CHANGED["sampler_options"]))
@pytest.mark.parametrize(
    ("sampler", "period"),
    [("instance", None), ("sqrt", None), ("sqrt", 2), ("b3rs", None), ("b3rs", 2), ("b3rs", 0)],
)
def test_sampler_options_are_used_or_refused(sampler: str, period: int | None, name: str):
    value = CHANGED["sampler_options"][name]
    config = _set(TrainConfig(), {"sampler": sampler, "bet_period": period})
    _set(config, {f"sampler_options.{name}": value})
    if name.startswith("bet_"):
        used = bool(period)
    elif name == "images_per_class":
        used = False  # with reading "quotas"
    else:
        used = sampler == "b3rs" and period != 0
    if used:
        validate(config)
        return
    with pytest.raises(ConfigError, match=f"sampler_options.{name}: expected the default"):
        validate(config)


def test_options_that_belong_together():
    validate(
        _set(
            TrainConfig(sampler="b3rs"),
            {"sampler_options.reading": "classes-images", "sampler_options.images_per_class": 2},
        )
    )
    for name, value in (("blocks", 4), ("block_rule", "images")):
        both = {"sampler_options.block_sizes": [5, 5], f"sampler_options.{name}": value}
        with pytest.raises(ConfigError, match="beside block_sizes"):
            validate(_set(TrainConfig(sampler="b3rs"), both))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bet_period": 4}, "bet_period: expected the default null with --sampler instance"),
        ({"statistics_batches": "ordinary"}, "--sampler instance and --bet-period null, where all"),
        ({**B3RS, "statistics_batches": "ordinary"}, "--sampler b3rs and --bet-period null"),
        ({**B3RS, "bet_period": 1, "statistics_batches": "balanced"}, "--bet-period 1, where all"),
        ({**B3RS, "bet_period": 0, "statistics_batches": "balanced"}, "--bet-period 0, where all"),
        (
            {
                **B3RS,
                "bet_period": 2,
                "statistics_batches": "balanced",
                "sampler_options.bet_start_epoch": 3,
            },
            "no batch would update the running statistics before that epoch",
        ),
        ({"statistics_layers": "all"}, "statistics_layers: expected the default 'whitening'"),
        (
            {**B3RS, "bet_period": 2, "statistics_batches": "ordinary", "whitening": "none"},
            "--whitening none, which has no running statistics",
        ),
        ({"whitening": "cholesky", "whitening_weights": "class-balanced"}, "takes no weights"),
        ({"whitening_options.weights_from": "dataset"}, "expected the default 'batch' with"),
        ({"mixup": 1.0, "whitening_weights": "class-balanced"}, "mixup: expected the default 0.0"),
        ({"mixup": 1.0, "cuda_graph": True}, "mixup: expected the default 0.0 with --cuda-graph"),
        ({"loss": "ldam", "model.classifier": "linear"}, "cosine or null with --loss ldam"),
        ({"loss": "ldam", "model.scale": 16.0}, "use --loss_options.s"),
        ({"model.scale": 16.0}, "use --model.classifier cosine"),
    ],
)
def test_combinations_without_effect_are_errors(options: dict, text: str):
    with pytest.raises(ConfigError, match=text):
        validate(_set(TrainConfig(), options))


@pytest.mark.parametrize(
    "options",
    [
        {"bet_period": 0},
        {**B3RS, "bet_period": 8, "statistics_batches": "ordinary"},
        {**B3RS, "bet_period": 2, "statistics_batches": "balanced", "statistics_layers": "all"},
        {
            **B3RS,
            "bet_period": 2,
            "statistics_batches": "ordinary",
            "statistics_layers": "all",
            "whitening": "none",
        },
        {"whitening_weights": "class-balanced", "whitening_options.weights_from": "dataset"},
        {"loss": "ldam-drw", "model.classifier": "cosine", "mixup": 0.2},
    ],
)
def test_combinations_with_effect_are_valid(options: dict):
    validate(_set(TrainConfig(), options))


def test_every_whitening_option_belongs_to_a_layer():
    known = {name for names in WHITENING_OPTIONS.values() for name in names}
    # Weights are given to the layer with the batch.
    assert known == {f.name for f in fields(WhiteningOptions)} - {"weights_from"}


def test_run_names_tell_what_is_not_default():
    assert TrainConfig().run_name() == "digits-lt-fused-logit-adjusted-0"
    config = _set(TrainConfig(seed=3), {**B3RS, "bet_period": 8})
    assert config.run_name() == "digits-lt-fused-logit-adjusted-b3rs-bet8-3"
    _set(config, {"model.classifier": "batchnorm", "mixup": 0.2})
    expected = "digits-lt-fused-logit-adjusted-batchnorm-classifier-mixup-b3rs-bet8-3"
    assert config.run_name() == expected
    config.output.name = "mine"
    assert config.run_name() == "mine"
