"""How a stage in Python becomes an operator, and what surrounds it when it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from .._ops import add_op_namespace_prefix, ops
from ..precision import full_float32
from . import stages


def current_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which ``device``, where it is a GPU, is the current one.

    PyTorch's own operations launch on the device of their tensors; Triton launches on the current
    device and its stream, whatever tensors it is given.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def operator(backend: str, name: str, function: Callable[..., Any]) -> Any:
    """Register ``function`` as the operator ``<backend>_<name>``: a backend's stage.

    The first argument is a tensor, and says on which device it runs. Where the stage falls back to
    PyTorch's products, they are float32's, also in a compiled graph.
    """

    def run(x: torch.Tensor, *rest: Any) -> Any:
        with current_device(x.device), full_float32(x):
            return function(x, *rest)

    op = torch.library.custom_op(
        add_op_namespace_prefix(f"{backend}_{name}"),
        run,
        mutates_args=(),
        schema=stages.schema(name),
    )
    op.register_fake(stages.fake(name))
    return getattr(ops, f"{backend}_{name}")
