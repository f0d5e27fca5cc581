"""Checkpoints: tensors and plain containers only, so that they load with ``weights_only=True``.

Format 3 holds under "model" the state_dict, and beside it what `training.runs.resume` lists.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.errors import ConfigError
from training.runs.folder import RunFolder, sync_folder, write_atomic

FORMAT = 3


class CorruptCheckpoint(ConfigError):
    """The file is damaged or cut off."""


def save_checkpoint(path: Path, model: nn.Module, **content: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        path: Where the file shall be; its folder exists.
        model: The state_dict of this is stored under "model", on the CPU.
        content: Plain containers and tensors, stored under their names; tensors on the CPU.
    """
    checkpoint = {"format": FORMAT, "model": model.state_dict(), **content}
    checkpoint = on_cpu(checkpoint)
    write_atomic(path, lambda file: torch.save(checkpoint, file))


def save_last(folder: RunFolder, model: nn.Module, **content: Any) -> None:
    """Write the checkpoint "last", and keep the one before as "last-previous".

    At every moment of this one of the two is whole: the new file is complete, and on the disk,
    before the old one is renamed.
    """
    new = folder.checkpoint("last-new")
    save_checkpoint(new, model, **content)
    last = folder.checkpoint("last")
    if last.exists():
        os.replace(last, folder.checkpoint("last-previous"))
    os.replace(new, last)
    sync_folder(last.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; code inside it is never run.

    Raises:
        CorruptCheckpoint: If the file is damaged; checksums of all its parts are compared.
        ConfigError: If it is whole, but no checkpoint of this format.
    """
    try:
        # torch.load itself does not compare the checksums.
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise CorruptCheckpoint(f"{path}: the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{error}; {_ADVICE}") from None
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, pickle and torch each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCheckpoint(f"{path}: no readable checkpoint ({reason}); {_ADVICE}") from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"{path}: expected a checkpoint of format {FORMAT}, got format {found}; "
            "use a file that this version of `python -m training train` wrote."
        )
    return checkpoint


_ADVICE = "use last.pt, last-previous.pt or best.pt of the run, or train again."


def on_cpu(value: Any) -> Any:
    """Return nested containers with every tensor detached and on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_cpu(item) for item in value)
    return value
