"""What a CUDA graph does, on the CPU: a function's operations recorded, and repeated on its memory.

As a graph, a recording knows nothing of Python: numbers of the host are those of the recording, a
tensor is its memory, and an operation that would read the device's numbers cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They wait for a device, or give tensors whose shapes depend on its numbers.
_WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique2")


def record(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record a function as `training.engine.graphs.CudaCapture` does: its effects are undone."""
    recorder = _Recorder()
    with recorder:
        result = function()
    with torch.no_grad():
        for tensor, before in recorder.found.values():
            tensor.copy_(before)

    @torch.no_grad()
    def replay() -> None:
        for operation, arguments, options, results in recorder.operations:
            found = _tensors(operation(*arguments, **options))
            if results:  # else it has written where it was to
                for old, new in zip(results, found, strict=True):
                    old.copy_(new)

    return replay, result


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: dict[int, Tensor] = {}
        self.found: dict[int, tuple[Tensor, Tensor]] = {}  # with its numbers

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        schema = operation._schema
        if schema.name.split("::")[1] in _WAITING:
            raise RuntimeError(f"{schema.name}: not permitted when stream is capturing")
        for tensor in _tensors((args, kwargs)):  # batch_norm does not say that it writes
            if id(tensor) not in self.made and id(tensor) not in self.found:
                self.found[id(tensor)] = (tensor, tensor.detach().clone())
        results = operation(*args, **kwargs)
        tensors = _tensors(results)
        aliases = [result.alias_info for result in schema.returns]
        written = any(alias is not None and alias.is_write for alias in aliases)
        if written or not any(aliases):  # a view is the same memory in every replay
            self.operations.append((operation, args, kwargs, [] if written else tensors))
        if not written:
            self.made.update({id(tensor): tensor for tensor in tensors})
        return results


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
