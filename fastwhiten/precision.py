"""How whitening lives with mixed precision and TF32: it keeps its own precision.

Autocast would compute statistics in half precision. ``torch.set_float32_matmul_precision("high")``
and ``torch.backends.cuda.matmul.allow_tf32`` let the matrix products of float32 tensors keep ten
bits of the mantissa (on a GPU; bfloat16 or TF32 on some CPUs). Both are left to the network around
the layer; statistics, factors, whitened batches and their gradients are computed without. In
evaluation the layer is an affine map like ``nn.Linear``: its product follows the user's setting.

PyTorch keeps the precision of products for the whole process. While a whitening runs in one thread,
products of other threads are exact, too; the last one to leave restores what the first one found.

A graph that torch.compile makes while the setting is reduced keeps whitening's products inside
operators (:mod:`fastwhiten.backends.opaque`). What PyTorch records on its own keeps the user's
setting: derivatives of a product in a derivative, from the third of ``whiten`` on, and from the
second of ``batch_statistics`` and ``symmetric_eigh``.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch import Tensor

REDUCED = ("tf32", "bf16")
# Where PyTorch keeps the precision of products: (backend, operation) for each type of device.
_PRODUCTS = {"cuda": ("cuda", "matmul"), "cpu": ("mkldnn", "matmul")}


def _get(backend: str, operation: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, operation)


def _set(backend: str, operation: str, value: str) -> None:
    torch._C._set_fp32_precision_setter(backend, operation, value)


def _lower_setting() -> tuple[str | None, dict[tuple[str, str], str]]:
    """Return the older setting, None where it cannot be read, and those for each backend."""
    found = {}
    for backend, operation in _PRODUCTS.values():
        value = _get(backend, operation)
        # What is read may come from the setting for all operations: then it has to follow that.
        found[backend, operation] = "none" if value == _get(backend, "all") else value
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for a backend alone, so that the two disagree
        return None, found
    return older, found


def reduced(device: str) -> bool:
    """Return whether products of float32 tensors on that type of device lose bits."""
    return device in _PRODUCTS and _get(*_PRODUCTS[device]) in REDUCED


# A constant of the graph: torch.compile compiles again when the setting has changed.
reduced._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _FullFloat32:
    """Context in which products of float32 tensors are float32's; may be entered many times over.

    PyTorch has an older and a newer setting, and raises where it is asked for one that contradicts
    the other: both are set, and both are restored.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[str | None, dict[tuple[str, str], str]] = (None, {})

    def needed(self, x: Tensor) -> bool:
        """Return whether products of ``x`` would lose bits, or are kept from it by another."""
        if x.dtype == torch.float64 or x.device.type not in _PRODUCTS:
            return False
        return self._inside > 0 or reduced(x.device.type)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = _lower_setting()
                if self._before[0] not in (None, "highest"):
                    torch.set_float32_matmul_precision("highest")
                for place in self._before[1]:
                    _set(*place, "ieee")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                older, found = self._before
                if older not in (None, "highest"):
                    torch.set_float32_matmul_precision(older)
                for place, value in found.items():
                    _set(*place, value)


FULL_FLOAT32 = _FullFloat32()


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast leaves the device of ``x`` alone.

    The input's dtype is what a user, or autocast, chose for it; inside, statistics and eigensystem
    run in the accumulation dtype. Where autocast is off there is nothing to switch.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # autocast does not know "meta"
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def full_float32(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products of tensors like ``x`` keep all bits of float32.

    Nothing to switch for float64, or where the setting is "highest", PyTorch's default: looking
    takes half a microsecond. It cannot be traced, so operators enter it when they run.
    """
    if torch.compiler.is_compiling() or not FULL_FLOAT32.needed(x):
        return contextlib.nullcontext()
    return FULL_FLOAT32


@contextlib.contextmanager
def _without_both(x: Tensor) -> Any:
    with no_autocast(x), FULL_FLOAT32:
        yield


def own_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context with neither autocast (:func:`no_autocast`) nor TF32."""
    if torch.compiler.is_compiling() or not FULL_FLOAT32.needed(x):
        return no_autocast(x)
    return _without_both(x)
