"""Checkpoints: tensors and plain containers only, so that they load with ``weights_only=True``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.files import write_atomic

FORMAT = 1


def save_checkpoint(path: Path, model: nn.Module, **content: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        path: Where the file shall be; its folder exists.
        model: The state_dict of this is stored under "model", on the CPU.
        content: Plain containers and tensors, stored under their names.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    checkpoint = {"format": FORMAT, "model": state, **content}
    write_atomic(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; code inside it is never run.

    Raises:
        ValueError: If the file is no checkpoint of this format.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected a checkpoint of format {FORMAT}, got format {found}; "
            "use a file that this version of `python -m training train` wrote."
        )
    return checkpoint
