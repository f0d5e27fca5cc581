"""TensorBoard scalars of a run, written while it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import TrainConfig
from training.report.progress import Reporter
from training.runs.folder import RunFolder

if TYPE_CHECKING:
    from training.engine.trainer import Trainer

_HESSIAN_ROWS = 512
"""Images for the Hessian's condition number: fewer than the command's, it is computed often."""


class ScalarReporter:
    """Passes everything on to another reporter, and writes each epoch's figures for TensorBoard.

    Tags are the names of metrics.jsonl with slashes: ``validation/balanced_accuracy``; the
    diagnostics are below ``diagnostics/``. The step is the epoch. If a run is resumed, what it had
    written from that epoch on is hidden.

    Args:
        inner: The reporter that people see.
        path: Folder of the event files.
        diagnose: Returns the diagnostics of the model as it is after an epoch, nested.
        every: Epochs from one diagnosis to the next; 0 is never.
        epochs: The last epoch is diagnosed too.
    """

    def __init__(
        self,
        inner: Reporter,
        path: Path,
        diagnose: Callable[[int], Mapping[str, Any]],
        every: int,
        epochs: int,
    ) -> None:
        """Remember the parts; the file is made at the first epoch."""
        self._inner = inner
        self._path = path
        self._diagnose = diagnose
        self._every = every
        self._epochs = epochs
        self._writer: Any = None

    def step(self, loss: float) -> None:
        """One training step is done."""
        self._inner.step(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the figures of an epoch."""
        epoch = record["epoch"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # half a second to import

            self._writer = SummaryWriter(str(self._path), purge_step=epoch)
        figures = {name: value for name, value in record.items() if name != "epoch"}
        if self._every and (epoch % self._every == 0 or epoch == self._epochs):
            figures["diagnostics"] = self._diagnose(epoch)
        for tag, value in scalars(figures):
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()
        self._inner.epoch(record)

    def close(self) -> None:
        """Training is over, or has failed."""
        if self._writer is not None:
            self._writer.close()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the inner reporter can do."""
        return getattr(self._inner, name)


def scalars(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield tag and value of every finite number in nested figures.

    Example:
        >>> list(scalars({"step": 3, "test": {"loss": 0.5, "few": None, "per_class": [1.0]}}))
        [('step', 3.0), ('test/loss', 0.5)]
    """
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                yield prefix + name, float(value)


def with_scalars(
    reporter: Reporter, config: TrainConfig, folder: RunFolder, trainer: Trainer
) -> Reporter:
    """Return the reporter, with TensorBoard scalars beside it if ``output.tensorboard`` is on."""
    if not config.output.tensorboard:
        return reporter

    def figures(epoch: int) -> dict[str, Any]:
        from training.commands.diagnose import diagnose

        split = "validation" if trainer.dataset.has_validation else "test"
        result = diagnose(config, trainer.model, trainer.dataset, split, _HESSIAN_ROWS, epoch)
        norms = result["classifier"]["weight_norms"]
        result["classifier"]["weight_norm_ratio"] = max(norms) / min(norms) if min(norms) else None
        return {name: result[name] for name in ("before", "after", "classifier", "batches")}

    return ScalarReporter(
        reporter,
        folder.path / "tensorboard",
        figures,
        config.output.diagnostics_every,
        config.optim.epochs,
    )
