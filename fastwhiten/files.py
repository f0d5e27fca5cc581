"""Files of a :class:`fastwhiten.Whitener`: safetensors, with the parameters in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "fastwhiten.Whitener/1"


def _safetensors() -> Any:
    """Import safetensors, which only files need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Whitener: files are written by the package safetensors, which is not installed; run "
            "`pip install safetensors`, or pickle the Whitener"
        ) from error
    return safetensors


def write(path: str | Path, state: dict[str, Tensor], parameters: dict[str, Any]) -> None:
    """Write tensors and parameters.

    Raises:
        ImportError: the package safetensors is not installed.
    """
    tensors = {name: t.cpu().contiguous() for name, t in state.items()}
    header = {"format": FORMAT, "parameters": json.dumps(parameters)}
    _safetensors().torch.save_file(tensors, path, header)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and parameters.

    Raises:
        ImportError: the package safetensors is not installed.
        ValueError: a file of something else.
    """
    with _safetensors().safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(
                f"Whitener.load: expected a file of format {FORMAT!r}, got {path} of "
                f"{header.get('format')!r}"
            )
        state = {name: file.get_tensor(name) for name in file.keys()}
    return state, json.loads(header["parameters"])
