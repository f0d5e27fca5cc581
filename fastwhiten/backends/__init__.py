"""One module per implementation of the same stages, and the table that chooses between them.

Every backend module has the functions of :mod:`fastwhiten.backends.reference` (the specification),
under the same names, with the same arguments and results.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

from . import native, reference, triton

BACKENDS: dict[str, ModuleType] = {"native": native, "reference": reference, "triton": triton}


def available() -> dict[str, str | None]:
    """Return every backend's name with None if it can be used here, else the reason why not.

    Example:
        >>> import fastwhiten.backends
        >>> fastwhiten.backends.available()["reference"] is None
        True
    """
    reasons: dict[str, str | None] = {
        "native": None,
        "reference": None,
        "cuda": "this version has no CUDA kernels",
        "triton": triton.import_error(),
    }
    if native.import_error is not None:
        reasons["native"] = (
            f"the compiled extension fastwhiten._C cannot be loaded ({native.import_error}); "
            "run `pip install .` in the source folder, or `pip install -e .` to import from it"
        )
    return reasons


def explain() -> list[tuple[str, str, str]]:
    """Return ``(case, backend that "auto" takes, reason)`` for every case of the table.

    Example:
        >>> import fastwhiten.backends
        >>> len(fastwhiten.backends.explain())
        3
    """
    broken = available()["native"]
    cpu = (
        ("native", "compiled C++ kernels around the BLAS and LAPACK that PyTorch ships")
        if broken is None
        else ("reference", broken)
    )
    absent = triton.import_error()
    gpu = (
        ("triton", "Triton kernels, whose eigensolver does not wait for the host up to D = 64")
        if absent is None
        else ("reference", absent)
    )
    return [
        ("CPU tensors, every dtype and shape", *cpu),
        # Below 8.0 the kernels may run, but nobody has compiled or measured them there.
        ("CUDA tensors, NVIDIA GPU of compute capability 8.0 or later", *gpu),
        (
            "other devices and GPUs",
            "reference",
            "no kernels were made for them: plain PyTorch operations run there",
        ),
    ]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def choose(name: str, device: torch.device) -> str:
    """Return the name of the backend that serves ``device`` when the caller asked for ``name``.

    Raises:
        ValueError: ``name`` is no backend, or does not serve that device.
        RuntimeError: the backend exists but cannot be used here; the text says what is missing.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend: expected one of {['auto', *BACKENDS]}, got {name!r}")
    if name == "auto":
        if device.type != "cpu":
            served = device.type == "cuda" and triton.unserved(device) is None
            return "triton" if served else "reference"
        reason = available()["native"]
        if reason is not None:
            _warn_once(f'backend="auto" takes the slower reference backend: {reason}')
            return "reference"
        return "native"
    if name == "native":
        if device.type != "cpu":
            raise ValueError(
                f'backend="native" serves CPU tensors, got a tensor on {device}; '
                'move it with .cpu() or use backend="auto"'
            )
        reason = available()["native"]
        if reason is not None:
            raise RuntimeError(f'backend="native": {reason}')
    if name == "triton":
        _require_triton(device)
    return name


def _require_triton(device: torch.device) -> None:
    """Raise unless the Triton kernels serve ``device``."""
    reason = triton.unserved(device)
    if reason is None:
        return
    if reason == triton.import_error():
        raise RuntimeError(f'backend="triton": {reason}')
    raise ValueError(f'backend="triton": {reason}; move the tensor or use backend="auto"')


def get(name: str) -> ModuleType:
    """Return the backend module of a name that :func:`choose` returned."""
    return BACKENDS[name]
