"""The table of the stages: arguments and results, their order, shapes and dtypes.

Every backend has these functions; :mod:`fastwhiten.backends.reference` says what they compute. Fake
kernels for tracing, the operators' schemas, the checks in front of Triton's kernels and the tests'
emulated CUDA kernels are made from this table; a test compares it with the reference's signatures
and with the schemas in csrc/ops.

A line is ``name(arguments) -> results``. A tensor is ``name [dims]``, contiguous, in the
accumulation dtype T of :func:`fastwhiten.backends.reference.accumulation_dtype`, or ``name rows``:
``[M, C]`` or planes ``[N, C, L]`` with ``M = N L``, in the dtype of the input, all alike (``flat``:
rows only). G groups of D channels make C. ``?`` is None allowed, ``=`` None by default. ``if
spectral``: empty for Cholesky; ``if shrunk``: empty without shrinkage.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grouping import accumulation_dtype

ZCA, PCA, CHOLESKY = KINDS = 0, 1, 2
NO_SHRINKAGE, FIXED, OAS, LEDOIT_WOLF = METHODS = 0, 1, 2, 3

TABLE = """
statistics(x rows, row_weight? [M], groups int, double_precision bool)
    -> mean [C], covariance [G D D]
eigh(a [G D D], start?= [G D D]) -> eigenvalues [G D], eigenvectors [G D D]
eigh_sweeps(a [G D D], start?= [G D D]) -> sweeps [G] int32
intensity(x rows, mean [C], covariance [G D D], running_covariance? [G D D], row_weight? [M],
    batch_weight float, method int, value float) -> rho [G]
factor(covariance [G D D], running_covariance? [G D D], rho? [G], batch_weight float, eps float,
    kind int, start?= [G D D])
    -> eigenvalues [G D] if spectral, basis [G D D] if spectral, matrix [G D D]
apply(x rows, mean [C], matrix [G D D], gamma? [C], beta? [C]) -> y rows
backward_reduce(x rows, grad rows, mean [C], groups int) -> grad_sum [C], cross [G D D]
backward_matrix(cross [G D D], eigenvalues [G D] if spectral, basis [G D D] if spectral,
    matrix [G D D], gamma? [C], rho? [G], batch_weight float, kind int)
    -> inner [G D D], grad_gamma [C]
backward_apply(x rows, grad rows, mean [C], grad_sum [C], matrix [G D D], inner [G D D], gamma? [C],
    row_weight? [M]) -> dx rows
whiten_forward(x rows, gamma? [C], beta? [C], row_weight? [M], running_covariance? [G D D],
    groups int, batch_weight float, eps float, kind int, double_precision bool, shrink_method int,
    shrink_value float, start?= [G D D])
    -> y rows, mean [C], covariance [G D D], eigenvalues [G D] if spectral,
    basis [G D D] if spectral, matrix [G D D], rho [G] if shrunk
whiten_backward(grad rows, x rows, mean [C], eigenvalues [G D] if spectral,
    basis [G D D] if spectral, matrix [G D D], gamma? [C], rho? [G], row_weight? [M],
    batch_weight float, kind int) -> dx rows, grad_gamma [C], grad_sum [C]
sample_statistics(x flat, row_weight? [M], groups int, double_precision bool)
    -> mean [C], scaled [M C], gram [G M M]
sample_apply(scaled [M C], eigenvalues [G M], eigenvectors [G M M], row_weight? [M], rho? [G],
    eps float, out_dtype dtype) -> y [M C] out_dtype, projected [G M D]
sample_backward(grad flat, projected [G M D], eigenvalues [G M], eigenvectors [G M M],
    row_weight? [M], rho? [G], eps float) -> dx flat
"""

_SCHEMA_TYPES = {"int": "SymInt", "float": "float", "bool": "bool", "dtype": "ScalarType"}


class Value(NamedTuple):
    """An argument or a result of a stage."""

    name: str
    type: str  # "rows", "flat", "tensor", "int", "float", "bool" or "dtype"
    dims: tuple[str, ...]  # of a tensor
    dtype: str  # of a tensor: "T", "int32", or the name of an argument
    optional: bool  # may be None
    default: bool  # is None unless given
    condition: str  # "", "spectral", "shrunk"

    @property
    def is_rows(self) -> bool:
        """Whether it has the shape and the dtype of the input."""
        return self.type in ("rows", "flat")


class Stage(NamedTuple):
    """A line of the table."""

    arguments: tuple[Value, ...]
    results: tuple[Value, ...]


class Call(NamedTuple):
    """A stage's arguments by name, and what its letters stand for."""

    given: dict[str, Any]
    sizes: dict[str, Any]  # M, C, G, D; N and L of planes; "rows" is the shape of rows
    dtypes: dict[str, torch.dtype]  # T; "rows" is the dtype of rows


_VALUE = re.compile(r"(\w+)(\??)(=?) (?:\[([\w ]+)\]|(\w+))(?: (?!if)(\w+))?(?: if (\w+))?$")


def _value(text: str) -> Value:
    name, optional, default, dims, type_, dtype, condition = _VALUE.match(text.strip()).groups()  # type: ignore[union-attr]
    kind = "tensor" if dims else type_
    return Value(
        *(name, kind, tuple((dims or "").split()), dtype or "T"),
        *(bool(optional), bool(default), condition or ""),
    )


def _parse(table: str) -> dict[str, Stage]:
    found = {}
    for name, arguments, results in re.findall(
        r"^(\w+)\(([^)]*)\)\s*->([^(]*)(?=\n\w|\n$)", table, re.M
    ):
        found[name] = Stage(*(tuple(map(_value, part.split(","))) for part in (arguments, results)))
    return found


STAGES = _parse(TABLE)


def bind(name: str, arguments: Sequence[Any]) -> Call:
    """Return the arguments of a call of stage ``name`` by name, with sizes and dtypes."""
    stage = STAGES[name]
    given = dict(zip((v.name for v in stage.arguments), arguments, strict=False))
    sizes: dict[str, Any] = {"G": given["groups"]} if "groups" in given else {}
    dtypes: dict[str, torch.dtype] = {}
    for value in stage.arguments:
        t = given.get(value.name)
        if not isinstance(t, Tensor) or _is_empty(value, given):
            continue
        if value.is_rows:
            if "rows" not in sizes:
                planes = t.dim() == 3
                sizes |= {"rows": t.shape, "N": t.shape[0], "L": t.shape[2] if planes else 1}
                sizes |= {"M": t.shape[0] * t.shape[2] if planes else t.shape[0], "C": t.shape[1]}
                dtypes["rows"] = t.dtype
        else:
            for letter, size in zip(value.dims, t.shape, strict=False):
                sizes.setdefault(letter, size)
            dtypes.setdefault("T", t.dtype)
    if "C" not in sizes:
        sizes["C"] = sizes["G"] * sizes["D"]
    if "rows" in sizes or "D" not in sizes:
        sizes["D"] = sizes["C"] // (sizes["G"] or 1)
    if "double_precision" in given:
        dtypes["T"] = accumulation_dtype(dtypes["rows"], given["double_precision"])
    return Call(given, sizes, dtypes)


def _is_empty(value: Value, given: dict[str, Any]) -> bool:
    if value.condition == "spectral":
        return bool(given["kind"] == CHOLESKY)
    return value.condition == "shrunk" and bool(given["shrink_method"] == NO_SHRINKAGE)


def results(name: str, call: Call) -> list[tuple[str, tuple[Any, ...], torch.dtype]]:
    """Return name, shape and dtype of what stage ``name`` returns."""
    found = []
    for value in STAGES[name].results:
        dtype = call.dtypes["rows" if value.is_rows else "T"] if value.dtype == "T" else None
        shape = call.sizes["rows"] if value.is_rows else [call.sizes[d] for d in value.dims]
        shape = (0,) if _is_empty(value, call.given) else tuple(shape)
        found.append((value.name, shape, dtype or call.given.get(value.dtype, torch.int32)))
    return found


def fake(name: str) -> Callable[..., Any]:
    """Return the fake kernel of stage ``name``: empty tensors of the right shapes and dtypes."""

    def empty(first: Tensor, *rest: Any) -> Any:
        shapes = results(name, bind(name, (first, *rest)))
        made = tuple(first.new_empty(shape, dtype=dtype) for _, shape, dtype in shapes)
        return made if len(made) > 1 else made[0]

    return empty


@functools.cache
def schema(name: str) -> str:
    """Return the schema of stage ``name`` without its name, as ``torch.library`` takes it."""

    def argument(v: Value) -> str:
        kind = _SCHEMA_TYPES.get(v.type, "Tensor")
        return f"{kind}{'?' if v.optional else ''} {v.name}{'=None' if v.default else ''}"

    stage = STAGES[name]
    made = "Tensor"
    if len(stage.results) > 1:
        made = f"({', '.join(f'Tensor {v.name}' for v in stage.results)})"
    return f"({', '.join(map(argument, stage.arguments))}) -> {made}"


def check(name: str, arguments: Sequence[Any], device: str) -> None:
    """Raise for arguments that a kernel of stage ``name`` must not see.

    A wrong pointer would be read, not reported.

    Raises:
        ValueError: a tensor that is not contiguous, of another shape, dtype or device than the
            table says, or an unknown kind or method.
    """
    call = bind(name, arguments)
    given, sizes, dtypes = call
    first = arguments[0]
    groups, channels = sizes["G"], sizes["C"]
    if channels % groups if groups > 0 else "groups" in given:
        raise ValueError(f"{name}: expected groups to divide {channels} channels, got {groups}")
    for value in STAGES[name].arguments:
        t = given.get(value.name)
        if isinstance(t, Tensor) and not _is_empty(value, given):
            _check_tensor(name, value, t, call, first)
    if name == "intensity" and sizes["M"] == 0:
        raise ValueError(f"{name}: expected at least one row, got {list(sizes['rows'])}")
    widest = given.get("out_dtype", dtypes.get("rows"))
    if widest == torch.float64 != dtypes["T"]:
        raise ValueError(f"{name}: expected float64 statistics for float64 rows, got {dtypes['T']}")
    if given.get("kind", ZCA) not in KINDS:
        raise ValueError(
            f"{name}: expected kind 0 (ZCA), 1 (PCA) or 2 (Cholesky), got {given['kind']}"
        )
    lowest = FIXED if "method" in given else NO_SHRINKAGE
    method = given.get("method", given.get("shrink_method", FIXED))
    if method not in METHODS[lowest:]:
        raise ValueError(
            f"{name}: expected method {'0 (none), ' if lowest == 0 else ''}1 (fixed), 2 (OAS) or 3 "
            f"(Ledoit-Wolf), got {method}"
        )
    if first.device.type != device:
        how = "run on a GPU" if device == "cuda" else "are interpreted (TRITON_INTERPRET=1)"
        raise ValueError(f"{name}: the Triton kernels {how}, got a tensor on {first.device}")


def _check_tensor(name: str, value: Value, t: Tensor, call: Call, first: Tensor) -> None:
    sizes, dtypes = call.sizes, call.dtypes
    if value.is_rows:
        shape, dtype = tuple(sizes["rows"]), dtypes["rows"]
        right = t.dim() in ((2,) if value.type == "flat" else (2, 3)) and dtype.is_floating_point
        planes = "" if value.type == "flat" else " or planes [N, C, L]"
        words = f"rows [M, C]{planes} of a floating dtype"
    else:
        shape, dtype = tuple(sizes.get(d) for d in value.dims), dtypes["T"]
        right = dtype in (torch.float32, torch.float64)
        words = "float32 or float64"
    same = tuple(t.shape) == shape and t.dtype == dtype and t.device == first.device
    if not (right and same and t.is_contiguous()):
        letters = "" if value.is_rows else f" = [{', '.join(value.dims)}]"
        raise ValueError(
            f"{name}: expected {value.name} contiguous {list(shape)}{letters} {dtype} on "
            f"{first.device} ({words}), got {list(t.shape)} {t.dtype} on {t.device} with strides "
            f"{list(t.stride())}"
        )
