"""Rows of tensors, arrays, memory maps and streams, a chunk at a time, as tensors.

NumPy is imported when the first array comes: tensors are whitened without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from .validation import DTYPES

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "Tensor | np.ndarray[Any, Any]"
# Called with the number of rows that are done and that of all, None where nobody knows it.
Report = Callable[[int, int | None], object]

# Numbers of a chunk: 32 MB in float64.
NUMBERS = 1 << 22


def numpy() -> Any:
    """Import NumPy, which only arrays need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import numpy
    except ImportError as error:
        raise ImportError(
            "Whitener: arrays and .npy files are read by NumPy, which is not installed; run "
            "`pip install numpy`, or pass tensors"
        ) from error
    return numpy


def as_array(caller: str, x: Any) -> Array | None:
    """Return ``x`` as a tensor or an array ``[n, C]``; None for a stream of those.

    Raises:
        ImportError: an array, and NumPy is not installed.
        TypeError: neither a tensor, an array, nor iterable; or not numbers.
        ValueError: not two dimensions, or no columns.
    """
    if not hasattr(x, "__array__"):
        if isinstance(x, Iterable) and not isinstance(x, (str, bytes)):
            return None
        raise TypeError(
            f"{caller}: expected a tensor, an array or an iterable of them, got {type(x).__name__}"
        )
    if not isinstance(x, Tensor):
        np = numpy()
        # Of a data frame, for example. A memory map stays one.
        x = x if isinstance(x, np.ndarray) else np.asarray(x)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(
            f"{caller}: expected rows of shape [n, C] with at least one column, got "
            f"{list(x.shape)}; move channels last and flatten the other dimensions"
        )
    is_real = not x.is_complex() if isinstance(x, Tensor) else x.dtype.kind in "fiub"
    if not is_real:
        raise TypeError(f"{caller}: expected real numbers, got {x.dtype}")
    array: Array = x
    return array


def split(x: Array, rows: int | None) -> Iterator[Tensor]:
    """Yield ``[n, C]`` in chunks of at most ``rows`` rows, as tensors of one of ``DTYPES``.

    Of a memory map, a chunk at a time is in memory; integers become float64.
    """
    step = rows or max(1, NUMBERS // x.shape[1], 2 * x.shape[1])
    for start in range(0, x.shape[0], step):
        yield tensor(x[start : start + step])


def tensor(part: Array) -> Tensor:
    """Return ``part`` as a tensor of one of ``DTYPES``, without a copy where none is needed."""
    if isinstance(part, Tensor):
        part = part.detach()
        return part if part.dtype in DTYPES else part.double()
    np = numpy()
    if part.dtype not in (np.float16, np.float32, np.float64) or not part.dtype.isnative:
        return torch.from_numpy(part.astype(np.float64))
    plain = isinstance(part, np.memmap) or not part.flags.writeable
    return torch.from_numpy(np.array(part) if plain else np.ascontiguousarray(part))


def stream(caller: str, x: Any, rows: int | None, report: Report) -> Iterator[Tensor]:
    """Yield the rows of an array, or of an iterable of arrays, in chunks that are not empty.

    A batch that is a tuple or a list stands for its first element, as a loader's ``(x, target)``.
    """
    whole = as_array(caller, x)
    batches = [whole] if whole is not None else x
    total, done = (None if whole is None else len(whole)), 0
    for batch in batches:
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        array = as_array(caller, first)
        if array is None:
            raise TypeError(
                f"{caller}: expected batches of shape [n, C], got one of type "
                f"{type(batch).__name__}"
            )
        for chunk in split(array, rows):
            yield chunk
            done += len(chunk)
            report(done, total)


def reporter(progress: bool | Report, what: str) -> Report:
    """Return whom to tell: nobody, a line on the standard error stream, or the user's function."""
    if callable(progress):
        return progress
    return _Line(what) if progress else lambda done, total: None


class _Line:
    """A line that is written over."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, done: int, total: int | None) -> None:
        share = "" if total is None else f" of {total:,} ({100 * done // total} %)"
        end = "\n" if done == total else ""
        print(f"\r{self.what}: {done:,} rows{share}", end=end, file=sys.stderr, flush=True)
