"""The folder of a run: where each file lies, and how the folder is made."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.config import OutputConfig
from training.errors import ConfigError
from training.runs.files import sync_folder, write_text

# What rename reports where a folder with something in it, or a file, has the name.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


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
    def metrics_csv(self) -> Path:
        """The single numbers of metrics.jsonl as a table."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """Last and best result."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """One page for people, with the pictures inside."""
        return self.path / "report.html"

    def checkpoint(self, name: str) -> Path:
        """The checkpoint "last", "last-previous" (the one before) or "best"."""
        return self.path / "checkpoints" / f"{name}.pt"

    def plot(self, name: str) -> Path:
        """A picture."""
        return self.path / "plots" / f"{name}.png"


def create_run_folder(
    name: str, output: OutputConfig, files: Mapping[str, str] | None = None
) -> RunFolder:
    """Make a new run folder; an old one is never overwritten silently.

    Without ``overwrite`` the first free one of name, name-2, name-3 … is taken. The folder appears
    with its first files in it, so that a run which is killed at any moment either has a
    configuration, and can be continued, or leaves no folder of its name.

    Args:
        name: Of the folder.
        output: Where it goes.
        files: Names and contents of the first files.

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
    new = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}.", suffix=".tmp"))
    new.chmod(0o755)  # mkdtemp's 0700 would lock out colleagues
    (new / "checkpoints").mkdir()
    (new / "plots").mkdir()
    for file, text in (files or {}).items():
        write_text(new / file, text)
    suffix = 1
    while True:
        try:
            new.rename(path)  # fails if another run took the name meanwhile
            sync_folder(root)
            return RunFolder(path)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            suffix += 1
            path = root / f"{name}-{suffix}"


def remove_leftovers(folder: RunFolder) -> None:
    """Remove temporary files that a killed process left in a run folder."""
    for pattern in (".*.tmp", "checkpoints/.*.tmp", "plots/.*.tmp"):
        for path in folder.path.glob(pattern):
            path.unlink(missing_ok=True)
