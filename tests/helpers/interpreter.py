"""Triton's interpreter, made three times faster for the tests, with the same results to the bit.

An operation on a block of 16 x 16 takes NumPy two microseconds and the interpreter thirty: it makes
types and constants anew for every value (a tuple of constants, a text and a check for every shape),
asks for a NumPy type by building a table of all, and at every call of ``tl.sum`` or ``tl.max``
patches the whole language again. All of that depends on a few shapes and types only, and is
remembered here. What is computed is still NumPy's answer to Triton's own rules.

Before 3.7 Triton takes a scalar, an array of one dimension to it, for a number, which NumPy refuses
from 2.4 on; importing this file mends that.

:func:`fast` knows the insides of one version, ``VERSION``, and leaves others as they are: tests
then take three times as long. ``tests/kernels/test_interpreter.py`` holds that both ways agree, and
that ``VERSION`` is the version that ``constraints.txt`` installs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

VERSION = "3.7.1"

core = tl.core
# By the integers of a block's shape, and by the identity of the one tuple made of them (all of them
# stay alive here, so that no other object can have the same identity).
_by_sizes: dict[tuple[int, ...], Shape] = {}
_by_identity: dict[int, Shape] = {}
# The shape that two shapes are broadcast to, by their identities.
_broadcast: dict[tuple[int, int], Any] = {}
_numpy_types: dict[str, Any] = {}


@dataclasses.dataclass
class Shape:
    """What blocks and their types make of a shape.

    Attributes:
        sizes: of integers, as ``block_type.shape``.
        numel: number of elements, as ``block_type.numel``.
        text: of the type's name.
        constants: of ``constexpr``, as ``tensor.shape``.
        count: number of elements, as ``tensor.numel``.
    """

    sizes: Any
    numel: int
    text: str
    constants: Any = None
    count: Any = None


# Scalars have a shape as well.
_SCALAR = Shape((), 1, "")
_by_identity[id(_SCALAR.sizes)] = _SCALAR


def _patch_tensor(original: Callable[..., None]) -> Callable[..., None]:
    """Return ``_patch_lang_tensor``, after which a scalar can bound a loop with every NumPy."""

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch


if triton.__version__.startswith("3.6."):
    interpreter._patch_lang_tensor = _patch_tensor(interpreter._patch_lang_tensor)


def _block_type(original: Callable[..., None]) -> Callable[..., None]:
    """Return ``block_type.__init__``, which checks and describes every shape once."""

    def __init__(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([s.value if type(s) is core.constexpr else s for s in shape])
        known = _by_sizes.get(sizes)
        if known is None:
            original(self, element_ty, shape)  # raises for a shape that is not valid
            known = Shape(self.shape, self.numel, str(self.shape))
            _by_sizes[sizes] = _by_identity[id(known.sizes)] = known
        self.element_ty = element_ty
        self.shape, self.numel = known.sizes, known.numel
        self.name = f"<{known.text}, {element_ty}>"

    return __init__


def _tensor(original: Callable[..., None]) -> Callable[..., None]:
    """Return ``tensor.__init__``, which makes the constants of every shape once."""

    def __init__(self: Any, handle: Any, type: Any) -> None:
        known = _by_identity.get(id(type.shape if type.is_block() else ()))
        if known is None or known.constants is None:
            original(self, handle, type)
            if known is not None:
                known.constants, known.count = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known.constants, known.count

    return __init__


def _unwrap(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``_unwrap_if_constexpr``, which asks for the likely types first."""

    def _unwrap_if_constexpr(o: Any) -> Any:
        kind = type(o)
        if kind is core.constexpr:
            return o.value
        return o if kind is int or kind is core.tensor else original(o)

    return _unwrap_if_constexpr


def _check_types(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``binary_op_type_checking_impl``, which has nothing to do for two of one type.

    Two values of 32 or 64 bits and the same type are neither promoted (halves are, in a division)
    nor converted nor broadcast.
    """

    def check(self: Any, lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> Any:
        if type(lhs) is type(rhs) is core.tensor and lhs.dtype is rhs.dtype:
            a, b, element = lhs.type, rhs.type, lhs.dtype
            same = a is b or (a.is_block() and b.is_block() and a.shape is b.shape)
            if same and not element.is_ptr() and element.primitive_bitwidth >= 32:
                return lhs, rhs
        return original(self, lhs, rhs, *args, **kwargs)

    return check


def _broadcast_values(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``broadcast_impl_value``, which finds the joint shape of two blocks once."""

    def broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
        a, b = lhs.type, rhs.type
        if not (a.is_block() and b.is_block() and len(a.shape) == len(b.shape)):
            return original(self, lhs, rhs)
        shapes = (a.shape, b.shape)
        if shapes[0] is shapes[1]:
            return lhs, rhs
        key = (id(shapes[0]), id(shapes[1]))
        joint = _broadcast.get(key)
        if joint is None:
            lhs, rhs = original(self, lhs, rhs)  # raises where they do not fit
            if all(id(s) in _by_identity for s in shapes):
                _broadcast[key] = lhs.type.shape
            return lhs, rhs
        found = []
        for value, shape in ((lhs, shapes[0]), (rhs, shapes[1])):
            if shape is not joint:
                handle = self.builder.create_broadcast(value.handle, joint.values)
                value = core.tensor(handle, core.block_type(value.type.scalar, joint))
            found.append(value)
        return tuple(found)

    return broadcast


def _numpy_type(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``_get_np_dtype``, which builds its table once for every type."""

    def _get_np_dtype(tt_dtype: Any) -> Any:
        found = _numpy_types.get(tt_dtype.name)
        if found is None:
            found = _numpy_types[tt_dtype.name] = original(tt_dtype)
        return found

    return _get_np_dtype


class _PatchLanguage:
    """``_patch_lang``: the language is patched for a launch, and not again for calls inside it.

    The first launch notes what Triton's own patch sets; the following ones set the same.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.changes: list[tuple[Any, str, Any]] = []
        self.scope: Any = None  # of the launch that is running

    def __call__(self, function: Any) -> Any:
        if self.scope is not None:
            return types.SimpleNamespace(restore=lambda: None)
        if self.changes:
            self.scope = interpreter._LangPatchScope()
            for change in self.changes:
                self.scope.set_attr(*change)
        else:
            # Kernels know ``tl``, the functions of the standard library ``core``.
            visible = types.SimpleNamespace(__globals__={"tl": tl, "core": core})
            self.scope = self.original(visible)
            names = {(id(o), name): (o, name) for o, name, _ in self.scope._changes}
            self.changes = [(o, name, vars(o)[name]) for o, name in names.values()]
        return self

    def restore(self) -> None:
        scope, self.scope = self.scope, None
        scope.restore()


@contextlib.contextmanager
def fast() -> Iterator[bool]:
    """Make the interpreter fast for the duration; yields whether it is, see ``VERSION``.

    Example:
        >>> with fast() as faster:
        ...     assert faster == (triton.__version__ == VERSION)
    """
    if triton.__version__ != VERSION:
        yield False
        return
    builder = interpreter.interpreter_builder
    # Sums and products of integers are computed a second time in 64 bits for an assertion that is
    # made only with the option ``debug``, which is off.
    quiet = dataclasses.replace(builder.options, sanitize_overflow=False)
    scope = interpreter._LangPatchScope()
    scope.set_attr(builder, "options", quiet if not quiet.debug else builder.options)
    for owner, name, replacement in (
        (core.block_type, "__init__", _block_type),
        (core.tensor, "__init__", _tensor),
        (core, "_unwrap_if_constexpr", _unwrap),
        (TritonSemantic, "binary_op_type_checking_impl", _check_types),
        (TritonSemantic, "broadcast_impl_value", _broadcast_values),
        (interpreter, "_get_np_dtype", _numpy_type),
        (interpreter, "_patch_lang", _PatchLanguage),
    ):
        scope.set_attr(owner, name, replacement(getattr(owner, name)))
    try:
        yield True
    finally:
        scope.restore()
