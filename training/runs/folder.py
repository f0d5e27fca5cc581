"""The folder of a run: where each file lies, and how the folder is made."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from fastwhiten import backends, info
from training.config import OutputConfig
from training.errors import ConfigError

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


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, finds the old file or the new one, never a part.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Args:
        path: Where the file shall be; its folder exists.
        write: Writes the content to a binary file object. If it raises, the old file stays.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock out colleagues
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def output_file(name: str) -> Path:
    """Return the path of a file that a person has asked for; its folder is made.

    Called before the work begins, so that none is lost.

    Raises:
        ConfigError: If it is a folder, or its folder cannot be made.
    """
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output: expected a file whose folder can be made, got {name!r}: {error.strerror}."
        ) from error
    if path.is_dir():
        raise ConfigError(f"output: expected a file, got {name!r}, which is a folder.")
    return path


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk: a rename must survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write plain containers as indented JSON, atomically; NaN and infinities become null."""
    write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Append plain containers as one line of JSON, on the disk; NaN and infinities become null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(without_nan(value), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def without_nan(value: Any) -> Any:
    """Replace floats that JSON does not know by None, in nested lists and dicts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


_PACKAGES = tuple(
    "fastwhiten torch torchvision numpy scikit-learn matplotlib jsonargparse rich".split()
)


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package; null if it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None  # for instance fastwhiten imported from a checkout
    found["torch"] = torch.__version__  # which build: PyPI's metadata leave +cu130 out
    return found


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what is needed to understand, or repeat, a run. Bits depend on the thread count."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": str(device),
        "gpu": cuda,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "backend": backends.choose("auto", device),
        "kernels": info.build(),
        "argv": sys.argv,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the checkout's commit, with "+changes" if files differ from it; null if unknown."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout, or no git: a release archive runs as well
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return result.stdout.strip()
