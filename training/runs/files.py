"""Files that are whole or not there, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from training.errors import ConfigError


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
