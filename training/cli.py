"""The command line: ``python -m training <command>``. One entry of ``_COMMANDS`` per command."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from training.config import TrainConfig
from training.errors import ConfigError, TrainingDiverged, TrainingStopped


class _Parser(ArgumentParser):
    """A parser whose complaint about an unknown option names the options that exist."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: --([\w.]+)|accept option '([\w.]+)'", message)
        options = _options(self)
        if unknown and options:
            name = unknown[1] or unknown[2]
            close = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            message = f"{message}.{hint}\nAllowed options: {', '.join(options)}"
        super().error(message, ex)
        raise AssertionError("ArgumentParser.error exits")


def _options(parser: ArgumentParser) -> list[str]:
    """Names of the options of a command, or of all commands."""
    names = [
        text.removeprefix("--")
        for action in parser._actions
        for text in action.option_strings
        if text.startswith("--")
    ]
    for command in _parsers(parser).values():
        names.extend(_options(command))
    return [name for name in names if name != "help"]


def _parsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    found: dict[str, ArgumentParser] = getattr(parser, "command_parsers", {})
    return found


def _run_train(options: Any) -> int:
    from training.train import run_training  # imports torch: --help stays fast without it

    run_training(options)
    return 0


_COMMANDS: dict[str, tuple[type, Callable[[Any], int], str]] = {
    "train": (TrainConfig, _run_train, "train a classifier and write a run folder"),
}


def build_parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="python -m training",
        description="Long-tailed training around fastwhiten.",
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    parsers: dict[str, ArgumentParser] = {}
    for name, (config, _, text) in _COMMANDS.items():
        command = _Parser(description=text, allow_abbrev=False)
        command.add_argument("--config", action="config", help="YAML file with any of the options")
        command.add_class_arguments(config)
        commands.add_subcommand(name, command, help=text)
        parsers[name] = command
    parser.command_parsers = parsers
    return parser


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """Turn the command line into a command's name and its configuration.

    ``--imbalance-factor`` and ``--imbalance_factor`` are the same option. On a wrong option or
    value the message is printed to standard error and the process exits with status 2.
    """
    parser = build_parser()
    names = [_with_underscores(argument) for argument in arguments]
    options = parser.instantiate(parser.parse_args(_with_values(names)))
    command = options.command
    values = vars(options[command])
    values.pop("config", None)
    return command, _COMMANDS[command][0](**values)


def run(arguments: Sequence[str]) -> int:
    """Parse and run a command.

    Returns:
        The exit status: 0, 1 if training diverged, 2 for a wrong configuration, 143 or 130 if
        SIGTERM or SIGINT stopped training (128 + its number), after everything was saved.
    """
    command, config = parse(arguments)
    try:
        return _COMMANDS[command][1](config)
    except (ConfigError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal


def _with_values(arguments: list[str]) -> list[str]:
    """Let a flag stand alone: ``--compile`` is ``--compile=true``."""
    flags = {f"--{name}" for config, _, _ in _COMMANDS.values() for name in _flags(config)}
    following = [*arguments, "--"][1:]
    return [
        f"{argument}=true" if argument in flags and after.startswith("--") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _flags(config: type) -> list[str]:
    """Return the names of a configuration's options that are true or false, sections included."""
    names = []
    for field in fields(config):
        if isinstance(field.default, bool):
            names.append(field.name)
        elif is_dataclass(field.default_factory):
            names.extend(f"{field.name}.{name}" for name in _flags(field.default_factory))
    return names


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
