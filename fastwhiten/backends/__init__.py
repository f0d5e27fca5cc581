"""One module per implementation of the same stages, and the table that chooses between them.

Every backend module has the functions of :mod:`fastwhiten.backends.reference` (the specification),
under the same names, with the same arguments and results.
"""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType
from typing import Any

import torch

from ..precision import reduced
from . import cuda_module, native, opaque, reference, triton

# Up to which order the CUDA kernels' eigensolver gains from eigenvectors to begin from (kBlockUpTo
# of csrc/cuda/jacobi_block.cuh). Triton's begins anew, for with a start its kernel would need local
# memory; libraries' solvers, above and elsewhere, are direct.
START_UP_TO = {torch.float32: 128, torch.float64: 64}

# What backend="auto" means: "auto", the table below, or one backend for every call.
DEFAULT = os.environ.get("FASTWHITEN_BACKEND", "auto")

ANYWAY = 'backend="reference" or FASTWHITEN_BACKEND=reference runs plain PyTorch operations instead'

BACKENDS: dict[str, ModuleType] = {"native": native, "reference": reference, "triton": triton}


def available() -> dict[str, str | None]:
    """Return every backend's name with None if it can be used here, else the reason why not.

    Example:
        >>> import fastwhiten.backends
        >>> fastwhiten.backends.available()["reference"] is None
        True
    """
    return {
        "native": native.import_error,
        "reference": None,
        "cuda": _cuda_missing(),
        "triton": triton.import_error(),
    }


def _cuda_missing() -> str | None:
    """Return why the CUDA kernels serve no GPU here, or None; without a GPU, if they are there."""
    reasons = [cuda_module.missing(index) for index in range(torch.cuda.device_count())]
    return cuda_module.import_error if None in reasons or not reasons else reasons[0]


def explain() -> list[tuple[str, str, str]]:
    """Return ``(case, backend that "auto" takes, reason)`` for every case of the table.

    Every visible GPU is a case of its own: they may differ in compute capability. "none" stands
    where a call raises, with what it says.

    Example:
        >>> import fastwhiten.backends
        >>> [case for case, _, _ in fastwhiten.backends.explain()][0]
        'CPU tensors, every dtype and shape'
    """
    if DEFAULT != "auto":
        return [("every tensor", DEFAULT, f"FASTWHITEN_BACKEND={DEFAULT} asks for it")]
    cpu = (
        ("native", "compiled C++ kernels; wide groups by the BLAS and LAPACK that PyTorch ships")
        if native.import_error is None
        else ("none", native.import_error)
    )
    return [
        ("CPU tensors, every dtype and shape", *cpu),
        *_explain_cuda(),
        ("other devices", "reference", "no kernels were made for them: plain PyTorch runs there"),
    ]


def _explain_cuda() -> list[tuple[str, str, str]]:
    """Return a case for every visible GPU; one for them all where there is none."""
    count = torch.cuda.device_count()
    if count == 0:
        return [("CUDA tensors", *_explain_gpus(cuda_module.import_error, triton.import_error()))]
    cases = []
    for index in range(count):
        device = torch.device("cuda", index)
        found = _explain_gpus(cuda_module.missing(index), triton.unserved(device))
        cases.append((f"CUDA tensors on {device}, {torch.cuda.get_device_name(index)}", *found))
    return cases


def _explain_gpus(reason: str | None, absent: str | None) -> tuple[str, str]:
    """Return who serves GPUs that the CUDA kernels and Triton do not serve for these reasons."""
    if reason is None:
        archs = ", ".join(cuda_module.architectures())
        return "native", f"compiled CUDA kernels for compute capability {archs}"
    if torch.version.cuda is not None and absent is None:
        capability = ".".join(map(str, triton.CAPABILITY))
        return "triton", f"Triton kernels, for compute capability {capability} or later: {reason}"
    return "reference", f"plain PyTorch operations run there: {reason}"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def choose(name: str, device: torch.device) -> str:
    """Return the name of the backend that serves ``device`` when the caller asked for ``name``.

    Raises:
        ValueError: ``name`` is no backend, or does not serve that device.
        RuntimeError: the backend exists but cannot be used here; the text says what is missing.
    """
    asked = f'backend="{name}"'
    if name == "auto" and DEFAULT != "auto":
        name, asked = DEFAULT, f"FASTWHITEN_BACKEND={DEFAULT}"
    if name != "auto" and name not in BACKENDS:
        option = asked.split("=")[0]
        raise ValueError(f"{option}: expected one of {['auto', *BACKENDS]}, got {name!r}")
    if name == "triton":
        _require_triton(device, asked)
        return name
    if name == "reference" or (name == "auto" and device.type not in ("cpu", "cuda")):
        return "reference"
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{asked} serves CPU and CUDA tensors, got a tensor on {device}; "
            'move it with .cpu() or use backend="auto"'
        )
    cuda = device.type == "cuda"
    reason = cuda_module.missing(device.index) if cuda else native.import_error
    if reason is None:
        # On a GPU too, before Triton: one launch holds a whole small forward, compiled kernels
        # have no first call that compiles, and their eigensolver reaches D = 128 (float64: 64).
        return "native"
    if not cuda:
        raise RuntimeError(f"{asked}: {reason}; {ANYWAY}")
    if name == "native":
        raise RuntimeError(f"{asked}: CUDA kernels: {reason}")
    if triton.unserved(device) is None:
        return "triton"
    _warn_once(f"{asked} takes the slower reference backend: CUDA kernels: {reason}")
    return "reference"


def _require_triton(device: torch.device, asked: str) -> None:
    """Raise unless the Triton kernels serve ``device``."""
    reason = triton.unserved(device)
    if reason is None:
        return
    if reason == triton.import_error():
        raise RuntimeError(f"{asked}: {reason}")
    raise ValueError(f'{asked}: {reason}; move the tensor or use backend="auto"')


def takes_start(name: str, device: torch.device, size: int, dtype: torch.dtype) -> bool:
    """Return whether eigenvectors to begin from save the eigensolver of order ``size`` sweeps."""
    return name == "native" and device.type == "cuda" and size <= START_UP_TO[dtype]


def get(name: str) -> Any:
    """Return the stages of the backend whose name :func:`choose` returned.

    Its module; in a graph that is compiled while TF32 is on, operators around them.
    """
    if torch.compiler.is_compiling() and (reduced("cuda") or reduced("cpu")):
        return opaque.STAGES.get(name, BACKENDS[name])
    return BACKENDS[name]
