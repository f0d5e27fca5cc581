"""The folder of a run: where each file lies, and how the folder is made."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from training.config import OutputConfig
from training.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; can be given back as --config."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command line."""
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Last and best result."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """One page for people, with the pictures inside."""
        return self.path / "report.html"

    def checkpoint(self, name: str) -> Path:
        """The checkpoint "last" or "best"."""
        return self.path / "checkpoints" / f"{name}.pt"

    def plot(self, name: str) -> Path:
        """A picture."""
        return self.path / "plots" / f"{name}.png"


def create_run_folder(name: str, output: OutputConfig) -> RunFolder:
    """Make a new, empty run folder; an old one is never overwritten silently.

    Without ``overwrite`` the first free one of name, name-2, name-3 … is taken.

    Raises:
        ConfigError: If ``overwrite`` meets something that is not a run folder.
    """
    root = Path(output.root)
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    if output.overwrite and path.exists():
        if not (path / "config.yaml").is_file():
            raise ConfigError(
                f"output.overwrite: expected {path} to be a run folder (with a config.yaml), it is "
                "not; remove it yourself or choose another --output.name."
            )
        shutil.rmtree(path)
    suffix = 1
    while True:
        try:
            path.mkdir()  # fails if another run took the name meanwhile
            break
        except FileExistsError:
            suffix += 1
            path = root / f"{name}-{suffix}"
    (path / "checkpoints").mkdir()
    (path / "plots").mkdir()
    return RunFolder(path)
