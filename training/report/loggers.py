"""Where the figures of every epoch go beside metrics.jsonl: TensorBoard, JSON lines, your class."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training.config import TrainConfig, flatten, is_number, to_dict
from training.errors import ConfigError
from training.evaluation.diagnose import diagnose
from training.runs.folder import RunFolder, append_json_line, write_text

if TYPE_CHECKING:
    from training.engine.trainer import Trainer


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told about its run.

    Attributes:
        folder: The run folder.
        config: The configuration, with dotted names.
        start: The first epoch that will be logged. In a run that is continued, it and later ones
            may have been logged before: they come again.
    """

    folder: Path
    config: dict[str, Any]
    start: int


class Logger(Protocol):
    """Takes the figures of a run: made as ``Class(run, **options)``, on the first process alone.

    Tags are the names of metrics.jsonl with slashes, ``validation/balanced_accuracy``; the
    diagnostics are below ``diagnostics/``. An epoch is logged before it is saved, so that a run
    that is killed and continued misses none.

    Example:
        >>> class ListWriter:
        ...     def __init__(self, run, into):
        ...         self.into = into
        ...     def add_scalars(self, step, values):
        ...         self.into.append((step, values["train/loss"]))
        ...     def close(self):
        ...         self.into.append("closed")
        >>> found = []
        >>> writer: Logger = ListWriter(LoggedRun(Path("runs/a"), {"seed": 0}, start=1), into=found)
        >>> writer.add_scalars(1, {"train/loss": 0.5, "test/accuracy": 0.75})
        >>> writer.close()
        >>> found
        [(1, 0.5), 'closed']
    """

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One epoch's figures by their tags; the step is the epoch."""
        ...

    def close(self) -> None:
        """Training is over, or has failed."""
        ...


class TensorBoardWriter:
    """Event files in the run folder; those of epochs that are repeated are hidden."""

    def __init__(self, run: LoggedRun) -> None:
        """Open a new file."""
        from torch.utils.tensorboard import SummaryWriter  # half a second to import

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write and flush."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class JsonLinesWriter:
    """scalars.jsonl in the run folder, an object per epoch: its number and its figures."""

    def __init__(self, run: LoggedRun) -> None:
        """Drop the epochs that are repeated, and a line that was not written to its end."""
        self._path = run.folder / "scalars.jsonl"
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["epoch"] < run.start]
        write_text(self._path, "".join(kept))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        append_json_line(self._path, {"epoch": step, **values})

    def close(self) -> None:
        """Do nothing: every line is complete."""


_LOGGERS: dict[str, Callable[..., Logger]] = {
    "tensorboard": TensorBoardWriter,
    "jsonl": JsonLinesWriter,
}
_Entry = str | dict[str, dict[str, Any]]


def check_loggers(loggers: Sequence[_Entry]) -> None:
    """Check that every logger can be imported, has the methods, and takes its options.

    Raises:
        ConfigError: Naming the logger and what it lacks.
    """
    for entry in loggers:
        name, options = _parts(entry)
        kind = _class(name)
        missing = [
            method
            for method in ("add_scalars", "close")
            if not callable(getattr(kind, method, None))
        ]
        if missing:
            raise _error(
                f"a class with the methods add_scalars and close, {name} has no {missing[0]}"
            )
        try:
            inspect.signature(kind).bind(None, **options)
        except TypeError as error:
            raise _error(
                f"{name} to take the run and its options {options}, got: {error}"
            ) from error


def _parts(entry: _Entry) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if len(entry) != 1:
        raise _error(f"a list of names and {{name: options}} of one name each, got {entry!r}")
    return next(iter(entry.items()))


def _class(name: str) -> Callable[..., Logger]:
    if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise _error("tensorboard to be installed, found none; run: pip install tensorboard")
    if name in _LOGGERS:
        return _LOGGERS[name]
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise _error(f"{', '.join(_LOGGERS)} or module:Class, got {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever their module raises
        raise _error(f"{name} to be importable, got {type(error).__name__}: {error}") from error


def _error(text: str) -> ConfigError:
    return ConfigError(f"output.loggers: expected {text}.")


def _open(loggers: Sequence[_Entry], run: LoggedRun) -> list[Logger]:
    """Make the loggers; if one cannot be made, those before it are closed."""
    opened: list[Logger] = []
    with ExitStack() as stack:
        for entry in loggers:
            name, options = _parts(entry)
            kind = _class(name)
            try:
                logger = kind(run, **options)
            except Exception as error:  # of all processes, so in a form that can be sent to them
                text = f"{name} to open, got {type(error).__name__}: {error}"
                raise _error(text) from error
            stack.callback(logger.close)
            opened.append(logger)
        stack.pop_all()
    return opened


_HESSIAN_ROWS = 512
"""Images for the Hessian's condition number: fewer than the command's, it is computed often."""


class EpochLog:
    """Tells the loggers the figures of every epoch, and diagnoses some epochs for them.

    Args:
        loggers: None on all processes but the first; closed with the log.
        diagnose: Returns the diagnostics of the model as it is after an epoch, nested.
        every: Epochs from one diagnosis to the next; 0 is never.
        epochs: The last epoch is diagnosed too.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        diagnose: Callable[[int], Mapping[str, Any]],
        every: int,
        epochs: int,
    ) -> None:
        """Remember the parts."""
        self._loggers = loggers
        self._diagnose = diagnose
        self._every = every
        self._epochs = epochs

    def add(self, record: dict[str, Any]) -> None:
        """Log an epoch by its record of metrics.jsonl."""
        if not self._loggers:
            return
        epoch = record["epoch"]
        figures = {name: value for name, value in record.items() if name != "epoch"}
        if self._every and (epoch % self._every == 0 or epoch == self._epochs):
            figures["diagnostics"] = self._diagnose(epoch)
        values = dict(scalars(figures))
        for logger in self._loggers:
            logger.add_scalars(epoch, values)

    def close(self) -> None:
        """Training is over, or has failed."""
        with ExitStack() as stack:  # one that fails leaves the others to be closed
            for logger in self._loggers:
                stack.callback(logger.close)


def scalars(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield tag and value of every finite number in nested figures.

    Example:
        >>> list(scalars({"step": 3, "test": {"loss": 0.5, "few": None, "per_class": [1.0]}}))
        [('step', 3.0), ('test/loss', 0.5)]
    """
    for tag, value in flatten(figures, separator="/").items():
        if is_number(value) and math.isfinite(value):
            yield tag, float(value)


def open_log(config: TrainConfig, folder: RunFolder, trainer: Trainer) -> EpochLog:
    """Make the loggers of ``output.loggers``, on the first process; every process calls this.

    Raises:
        ConfigError: On every process, if a logger cannot be made.
    """
    loggers: list[Logger] = []
    run = LoggedRun(folder.path, flatten(to_dict(config)), trainer.cursor.epoch)
    trainer.processes.on_first(lambda: loggers.extend(_open(config.output.loggers, run)))

    def figures(epoch: int) -> dict[str, Any]:
        split = "validation" if trainer.dataset.has_validation else "test"
        result = diagnose(config, trainer.model, trainer.dataset, split, _HESSIAN_ROWS, epoch)
        norms = result["classifier"]["weight_norms"]
        result["classifier"]["weight_norm_ratio"] = max(norms) / min(norms) if min(norms) else None
        return {name: result[name] for name in ("before", "after", "classifier", "batches")}

    return EpochLog(loggers, figures, config.output.diagnostics_every, config.optim.epochs)
