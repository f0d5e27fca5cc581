"""The command line: ``python -m training <command>``.

To add a command: a line in ``_COMMANDS``, its configuration, and ``run_<command>`` in the module of
its name in `training.commands`, which returns an exit status, or anything else for 0.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring  # comes with jsonargparse[signatures]
from jsonargparse import ArgumentParser

from training.config import AblateConfig, CompareConfig, EvalConfig, Stage2Config, TrainConfig
from training.config.commands import (
    DataCommandConfig,
    DiagnoseConfig,
    ExportConfig,
    PlotConfig,
    PredictConfig,
    PresetsConfig,
    ReportConfig,
)
from training.engine.signals import sigterm_as_exit
from training.errors import ConfigError, TrainingDiverged, TrainingStopped
from training.presets import expand_presets


class _Parser(ArgumentParser):
    """A parser that complains in a line, and names the option that is nearest to an unknown one."""

    command_parsers: dict[str, ArgumentParser]  # of the outermost parser alone

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: --([\w.]+)|accept option '([\w.]+)'", message)
        if unknown:
            name = unknown[1] or unknown[2]
            options = [option for option in _options(self) if not name.startswith(f"{option}.")]
            close = difflib.get_close_matches(name, options, n=1)
            if name.endswith("output.tensorboard"):  # its old name
                close = ["output.loggers"]
            message += f". Did you mean '{close[0]}'?" if close else "."
        command = self.prog.replace(" [options]", "")  # a command's name has it in its middle
        self.exit(2, f"error: {message}\n{command} --help lists what there is.\n")
        raise AssertionError("exit returns never")


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


_COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainConfig, "train a classifier and write a run folder"),
    "data": (DataCommandConfig, "show or verify a data set"),
    "stage2": (Stage2Config, "put another classifier on a run's frozen features"),
    "eval": (EvalConfig, "evaluate a checkpoint of a run"),
    "compare": (CompareConfig, "compare runs over their seeds"),
    "ablate": (AblateConfig, "train a grid of runs and compare them"),
    "diagnose": (DiagnoseConfig, "diagnostics of a checkpoint's features"),
    "plot": (PlotConfig, "draw the pictures of a run and write its report"),
    "export": (ExportConfig, "write a run's model as safetensors, pt2 or ONNX"),
    "predict": (PredictConfig, "classes of images, by a run or an exported model"),
    "report": (ReportConfig, "write RESULTS.md from summaries of runs"),
    "presets": (PresetsConfig, "list the presets for --config"),
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
    for name, (config, text) in _COMMANDS.items():
        command = _Parser(description=text, allow_abbrev=False)
        command.add_argument(
            "--config", action="config", help="YAML file, or preset PROTOCOL/METHOD"
        )
        command.add_class_arguments(config, skip=_add_special_arguments(command, config))
        commands.add_subcommand(name, command, help=text)
        parsers[name] = command
    parser.command_parsers = parsers
    return parser


def _add_special_arguments(parser: ArgumentParser, config: type) -> set[str]:
    """Add the fields that are positional; return their names."""
    documented = {p.arg_name: p.description for p in parse_docstring(config.__doc__ or "").params}
    hints = get_type_hints(config)
    special = set()
    for item in fields(config):
        text = " ".join((documented.get(item.name) or "").split())
        kind = hints[item.name]
        if "positional" in item.metadata and get_origin(kind) is list:
            parser.add_argument(item.name, type=get_args(kind)[0], nargs="*", help=text)
        elif "positional" in item.metadata:
            parser.add_argument(item.name, type=kind, help=text)
        else:
            continue
        special.add(item.name)
    return special


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """Turn the command line into a command's name and its configuration.

    ``--imbalance-factor`` and ``--imbalance_factor`` are the same option. On a wrong option or
    value the message is printed to standard error and the process exits with status 2.
    """
    parser = build_parser()
    names = [_with_underscores(argument) for argument in arguments]
    try:
        names = expand_presets(names)
    except ConfigError as error:
        parser.error(str(error))
    options = parser.instantiate(parser.parse_args(_with_values(names)))
    command = options.command
    values = vars(options[command])
    values.pop("config", None)
    return command, _COMMANDS[command][0](**values)


def run(arguments: Sequence[str]) -> int:
    """Parse and run a command.

    Returns:
        The exit status: 0, 1 if training diverged or the command says so (a run of a grid failed),
        2 for a wrong configuration, 143 or 130 if SIGTERM or SIGINT stopped the command (128 + its
        number): training saves everything first.
    """
    command, config = parse(arguments)
    if sys.stderr.isatty():  # importing torch takes seconds
        print(f"{command}: starting", file=sys.stderr, flush=True)
    try:
        with sigterm_as_exit():
            # The module imports torch: --help stays fast without it.
            module = importlib.import_module(f"training.commands.{command}")
            status = getattr(module, f"run_{command}")(config)
            return status if isinstance(status, int) else 0
    except (ConfigError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _with_values(arguments: list[str]) -> list[str]:
    """Let a flag stand alone: ``--compile`` is ``--compile=true``."""
    flags = {f"--{name}" for config, _ in _COMMANDS.values() for name in _flags(config)}
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
