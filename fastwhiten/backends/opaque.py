"""Stages as operators of their own, for graphs that are compiled while TF32 is on.

A compiled graph leaves the context of :mod:`fastwhiten.precision` behind: its products run later,
with the user's setting. Inside an operator they run in that context again. The Triton backend's
stages are such operators already. The reference's become some here; and the native ones, whose
Cholesky factor of wide groups on a GPU is solved with by the library.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops
from ..precision import full_float32, reduced
from . import native, reference, stages
from .operators import operator


def _stages(module: ModuleType, backend: str) -> Any:
    """Return the stages of ``module`` as operators ``<backend>_<stage>``."""

    def stage(name: str) -> Callable[..., Any]:
        # Looked up when it runs: without the extension there are no native stages.
        return lambda *arguments: getattr(module, name)(*arguments)

    made = {name: operator(backend, name, stage(name)) for name in stages.STAGES}
    return SimpleNamespace(**made)


STAGES = {
    "native": _stages(native, "native"),
    "reference": _stages(reference, "reference"),
}


@torch.library.custom_op(add_op_namespace_prefix("product"), mutates_args=())
def _product(a: Tensor, b: Tensor) -> Tensor:
    with full_float32(a):
        return a @ b


@_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` as float32's, in a compiled graph too; not differentiable there."""
    if torch.compiler.is_compiling() and a.dtype != torch.float64 and reduced(a.device.type):
        hidden: Tensor = ops.product(a, b)
        return hidden
    return a @ b
