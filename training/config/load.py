"""A training configuration from a file, or from another one with some options changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from training.config.train import TrainConfig, flatten, to_dict
from training.errors import ConfigError


def load_config(path: Path) -> TrainConfig:
    """Read config.yaml of a run; options that the file lacks have their defaults.

    Raises:
        ConfigError: If the file is missing, is no YAML, or holds unknown or wrong options.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: expected a configuration in YAML, got: {reason}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(values).__name__}.")
    output = values.get("output")
    if isinstance(output, dict) and "tensorboard" in output:  # runs of before there were loggers
        output["loggers"] = ["tensorboard"] if output.pop("tensorboard") else []
    return _parse(values, str(path))


def change_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a copy of the configuration with other values of some options.

    Args:
        config: Left as it is.
        changes: From an option's name, with dots into the sections, to its value.

    Raises:
        ConfigError: If there is no such option, or the value has the wrong type.

    Example:
        >>> change_config(TrainConfig(), {"optim.lr": 0.5}).optim.lr
        0.5
    """
    values = to_dict(config)
    known = flatten(values)
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"{name}: expected an option of `train`, there is none of that name.")
        section = values
        *parents, last = name.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    return _parse(values, ", ".join(f"{name}={value}" for name, value in changes.items()))


def _parse(values: dict[str, Any], origin: str) -> TrainConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    try:
        options = parser.instantiate(parser.parse_object(values))
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin}: expected options of `train`, got: {reason}") from error
    return TrainConfig(**vars(options))
