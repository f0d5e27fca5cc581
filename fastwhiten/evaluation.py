"""What a layer does in evaluation: an affine map, whose matrix is a function of the statistics.

``W = S^-1/2`` of the running covariance costs D^3 operations, an evaluation M D^2, so the matrix is
worth keeping. No layer holds one: it would have to follow every way in which a buffer can change
(in place, through ``.data`` or NumPy, by ``load_state_dict``, ``functional_call``, ``to``, ...).
:func:`population_matrix` is a function of the covariance's *values*, with a memory beside it: for
every storage it was last called with, a copy of the covariance and the matrix that belongs to it.
The matrix is used again where copy and covariance are equal, number by number, and an entry goes
when its storage does. Comparing reads 2 D^2 numbers, on a CPU as bytes: a thirtieth of the product
of 128 rows (D = 512), as much again as that of a single row, and more where the matrices do not fit
the cache. On a GPU it waits for the device. What is only served is better exported.

While a CUDA graph is captured nothing can wait: there the storage and its version have to do. If
they are those of the last evaluation, the graph keeps that matrix; capture it again after a change
of the statistics. Otherwise the graph computes the matrix in every replay.

In compiled graphs, under ``vmap`` and with tensors without values (fake, meta) the same function is
an operator. ``torch.export`` gets the matrix as a constant (:func:`exported_matrix`).
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from . import backends
from .backends import reference
from .function import GROUP, fold, unfold
from .layout import as_rows_or_planes, restore
from .precision import FULL_FLOAT32, no_autocast

# Devices whose tensors have values that can be compared now.
_WITHOUT_VALUES = ("meta", "xla", "lazy")

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class _Entry(NamedTuple):
    storage: StorageWeakRef  # while it is held, the storage's address is not given again
    options: tuple[Any, ...]
    version: int | None  # of the covariance; None for an inference tensor, which has none
    copy: Tensor  # [G, D, D], contiguous: the covariance that the matrix was computed from
    matrix: Tensor  # [G, D, D]


_remembered: dict[tuple[int, int], _Entry] = {}


def compute(
    square: Tensor, kind: int, eps: float, shrink: float | None, double: bool, backend: str
) -> Tensor:
    """Return the whitening matrix ``[G, D, D]`` of covariances ``square`` ``[G, D, D]``.

    In their accumulation dtype. ``shrink`` is a fixed intensity, ``double`` asks for float64.
    """
    dtype = reference.accumulation_dtype(square.dtype, double)
    rho = None if shrink is None else square.new_full(square.shape[:1], shrink, dtype=dtype)
    stages = backends.BACKENDS[backends.choose(backend, square.device)]
    # Not full_float32: that leaves graphs that are being traced alone; this is a constant of them.
    exact = FULL_FLOAT32 if FULL_FLOAT32.needed(square) else contextlib.nullcontext()
    with no_autocast(square), exact:
        matrix: Tensor = stages.factor(square.to(dtype).contiguous(), None, rho, 1.0, eps, kind)[2]
    return matrix


def population_matrix(square: Tensor, *options: Any) -> Tensor:
    """Return what :func:`compute` does, from memory where ``square`` has not changed.

    Nobody may change the result: it may be that of the next call. No gradient flows into
    ``square``.
    """
    if torch.compiler.is_compiling() or not _has_values(square):
        matrix: Tensor = torch.ops.fastwhiten_layer.population_matrix(square.detach(), *options)
        return matrix
    return _recall(square, options)


def exported_matrix(square: Tensor, seen: tuple[Tensor, ...], *options: Any) -> Tensor:
    """Return the matrix for ``torch.export``: a constant, so that the graph has products only.

    Args:
        square: the covariance ``[G, D, D]``, for which the tracer may have put a fake tensor.
        seen: the buffer as the layer saw it last outside of the tracer, if any. Where ``square``
            does not stand for it, the matrix is computed in the graph.
        options: as in :func:`compute`.
    """
    stand_in: Any = getattr(square, "fake_mode", None)
    with _disable_current_modes():
        for buffer in () if stand_in is None else seen:
            if stand_in.from_tensor(buffer, static_shapes=True) is square:
                square = buffer
        if _has_values(square):
            return _recall(square, options)
    return population_matrix(square, *options)


def _has_values(t: Tensor) -> bool:
    """Return whether ``t`` is a tensor of numbers, and no tracer or transform watches it."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout == torch.strided
        and t.device.type not in _WITHOUT_VALUES
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _is_captured(t: Tensor) -> bool:
    """Return whether operations on ``t`` go into a CUDA graph, so that nothing can wait."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def can_read(t: Tensor) -> bool:
    """Return whether the host can look at the values of ``t`` now."""
    return (
        _has_values(t) and not torch._C._are_functorch_transforms_active() and not _is_captured(t)
    )


def warn_if_initial(count: Tensor, mean: Tensor, square: Tensor) -> None:
    """Warn where evaluation is the identity: nothing was trained or loaded."""
    if is_initial(count, mean, square):
        warnings.warn(
            "ChannelWhitening: evaluation before any training step: the running statistics are "
            "those that every layer begins with, and the layer only divides by sqrt(1 + eps). "
            "Train it, load a state_dict, or call fastwhiten.update_statistics(model, loader)",
            RuntimeWarning,
            stacklevel=2,
        )


def is_initial(count: Tensor, mean: Tensor, square: Tensor) -> bool:
    """Return whether statistics are those of a new layer: none counted, 0 and the identity."""
    if bool(count) or not can_read(mean) or not can_read(square) or bool(mean.any()):
        return False
    identity = torch.eye(square.shape[-1], device=square.device, dtype=square.dtype)
    return torch.equal(square, identity.expand_as(square))


def warn_if_few_rows(rows: int, channels: int, groups: int, running: str, eps: float) -> None:
    """Warn where ``rows`` of a training batch cannot span the ``channels / groups`` of a group.

    Of D directions they span M - 1, in which outputs have variance 1; in the others it is 0, while
    the running covariance, of many batches, spans all. The average of whitening matrices is
    ``1 / sqrt(eps)`` in what a batch does not span.
    """
    size = channels // groups
    if rows > size:
        return
    spanned = (rows - 1) / size
    later = (
        f"up to {(1 - spanned) * eps**-0.5:.0f} times the input's (running='matrix')"
        if running == "matrix"
        else "about 1"
    )
    enough = next(
        g for g in range(1, channels + 1) if channels % g == 0 and channels // g <= max(rows / 2, 1)
    )
    warnings.warn(
        f"ChannelWhitening: training on {rows} rows with {size} channels in a group: a batch spans "
        f"{rows - 1} of {size} directions, so outputs have a deviation of about {spanned**0.5:.2f} "
        f"in training and of {later} in evaluation. Take more rows than channels (larger "
        f"batches, process_group), fewer channels in a group (groups={enough}), or make up for "
        "missing rows (batch_weight=0.02, or shrinkage, which helps less); see 'Fewer rows than "
        "channels' in the README",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Run operations that belong to no ``torch.func`` transform and to no ``torch.jit`` trace.

    Inside a transform, operations on plain tensors give wrapped ones, which die with it. A trace
    takes what it has not seen made for a constant.
    """
    plain = contextlib.nullcontext()
    transformed = torch._C._are_functorch_transforms_active()
    traced = torch._C._get_tracing_state()
    if traced is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with temporarily_clear_interpreter_stack() if transformed else plain:
            yield
    finally:
        if traced is not None:
            torch._C._set_tracing_state(traced)  # type: ignore[attr-defined]


def _recall(square: Tensor, options: tuple[Any, ...]) -> Tensor:
    key = (square.untyped_storage()._cdata, square.data_ptr())
    entry = _remembered.get(key)
    if entry is not None and entry.options == options and _is_current(entry, square):
        return entry.matrix
    for other, old in list(_remembered.items()):
        if _is_gone(old):
            _remembered.pop(other, None)
    # A matrix made in inference mode could not be saved for a backward after it. Nothing here has a
    # gradient, and no_grad() would be recorded by torch.export, with what it restores.
    with _unwatched(), torch.inference_mode(False):
        if _is_captured(square):  # nothing is computed yet: each replay does
            return compute(square.detach(), *options)
        version = _version(square)
        copy = square.detach().clone(memory_format=torch.contiguous_format)
        matrix = compute(copy, *options)
        storage = StorageWeakRef(square.untyped_storage())  # type: ignore[no-untyped-call]
    _remembered[key] = _Entry(storage, options, version, copy, matrix)
    return matrix


def _is_gone(entry: _Entry) -> bool:
    return bool(entry.storage.expired())  # type: ignore[no-untyped-call]


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _is_current(entry: _Entry, square: Tensor) -> bool:
    """Return whether the matrix of ``entry`` is that of ``square``."""
    copy = entry.copy
    if copy.shape != square.shape or copy.dtype != square.dtype:
        return False
    if _is_captured(square):
        return entry.version is not None and entry.version == _version(square)
    if square.device.type == "cpu" and square.is_contiguous() and not square.is_neg():
        # Six times as fast as torch.equal, and NaN equals NaN.
        size = copy.numel() * copy.element_size()
        return bool(_memcmp(copy.data_ptr(), square.data_ptr(), size) == 0)
    with _unwatched():
        return torch.equal(copy, square)


def _operator(
    square: Tensor, kind: int, eps: float, shrink: float | None, double: bool, backend: str
) -> Tensor:
    # A copy: a compiled graph takes the memory of its results for others when they are used up.
    return _recall(square, (kind, eps, shrink, double, backend)).clone()


# It looks at values on the host, which a captured graph would do once.
_tags = [torch.Tag.cudagraph_unsafe] if hasattr(torch.Tag, "cudagraph_unsafe") else []
_op = torch.library.custom_op(
    "fastwhiten_layer::population_matrix", _operator, mutates_args=(), tags=_tags
)


@_op.register_fake
def _(
    square: Tensor, kind: int, eps: float, shrink: float | None, double: bool, backend: str
) -> Tensor:
    return torch.empty_like(
        square,
        dtype=reference.accumulation_dtype(square.dtype, double),
        memory_format=torch.contiguous_format,
    )


def _vmap(info: Any, in_dims: tuple[int | None, ...], square: Tensor, *options: Any) -> Any:
    """Fold the vmapped dimension into the groups."""
    folded = fold(square, in_dims[0], info.batch_size, GROUP)
    matrix = torch.ops.fastwhiten_layer.population_matrix(folded, *options)
    return unfold(matrix, info.batch_size, GROUP), 0


_op.register_vmap(_vmap)


def apply(
    x: Tensor, mean: Tensor, matrix: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return ``((x - mean) W) * weight + bias``, in plain differentiable operations.

    In the dtype and memory layout of ``x``. The product has the precision that the user has set
    for products, TF32 too.

    Args:
        x: ``[N, C, *spatial]``; N may be 0.
        mean: ``[C]``.
        matrix: ``[G, D, D]``.
        weight: ``[C]``.
        bias: ``[C]``.
    """
    dtype = torch.promote_types(matrix.dtype, reference.accumulation_dtype(x.dtype))
    groups, size = matrix.shape[:2]
    view = as_rows_or_planes(x)  # [M, C] or [N, C, L]
    with no_autocast(x):
        mean, matrix = mean.detach().to(dtype), matrix.to(dtype)
        centered = view.to(dtype) - (mean.unsqueeze(1) if view.dim() == 3 else mean)
        if view.dim() == 3:
            grouped = centered.reshape(view.shape[0], groups, size, view.shape[2])
            y = (matrix.mT @ grouped).reshape(view.shape)  # [N, G, D, L] to planes
        elif groups == 1:
            y = centered @ matrix[0]
        else:
            grouped = centered.reshape(-1, groups, size).transpose(0, 1)  # [G, M, D]
            y = (grouped @ matrix).transpose(0, 1).reshape(view.shape)
        if weight is not None and bias is not None:
            # No views of parameters: those that were converted in inference mode have none.
            last = y.mT if y.dim() == 3 else y
            last = last * weight.to(dtype) + bias.to(dtype)
            y = last.mT if y.dim() == 3 else last
        return restore(y.to(x.dtype), x)


def invert(
    y: Tensor, mean: Tensor, matrix: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return ``((y - bias) / weight) W^-1 + mean``, what :func:`apply` is undone by.

    Raises:
        ValueError: ``W`` is singular to rounding, or a scale is 0.
    """
    caller = "ChannelWhitening.inverse"
    if weight is not None and not bool(weight.all()):
        raise ValueError(f"{caller}: expected scales other than 0, got weight with a 0")
    inverse, info = torch.linalg.inv_ex(matrix.double())
    norms = (torch.linalg.matrix_norm(m, 1) for m in (matrix.double(), inverse))
    condition = float(next(norms).mul(next(norms)).max())
    if bool(info.any()) or not condition * torch.finfo(matrix.dtype).eps < 1.0:
        raise ValueError(
            f"{caller}: expected a whitening matrix that can be inverted in {matrix.dtype}, got "
            f"one of condition {condition:.1e}; directions without variance are lost (raise eps, "
            "or use Whitener.inverse_transform, which puts the mean there)"
        )
    dtype = torch.promote_types(matrix.dtype, reference.accumulation_dtype(y.dtype))
    shape = [1, -1, *[1] * (y.dim() - 2)]
    x = y.to(dtype)
    if weight is not None and bias is not None:
        x = (x - bias.to(dtype).reshape(shape)) / weight.to(dtype).reshape(shape)
    x = apply(x, torch.zeros_like(mean), inverse.to(dtype), None, None)
    return (x + mean.detach().to(dtype).reshape(shape)).to(y.dtype)
