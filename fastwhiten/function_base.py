"""``torch.autograd.Function`` with a typed ``apply``, and a quicker way to call one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

if TYPE_CHECKING:

    class Function(torch.autograd.Function):
        """``torch.autograd.Function`` with a type for ``apply``, which PyTorch leaves untyped."""

        @classmethod
        def apply(cls, *args: Any) -> Any:
            """Run the Function."""

else:
    Function = torch.autograd.Function


def run(function: type[Function], *args: Any) -> Any:
    """Return ``function.apply(*args)``, for positional arguments that are complete.

    For a Function with ``setup_context``, ``apply`` inspects the signature of ``forward`` on every
    call to fill in defaults; that alone took longer than whitening a small batch (27 of 53
    microseconds for twelve arguments). This is the rest of what it does outside of transforms.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return function.forward(*unwrap_dead_wrappers(args))  # nothing will be differentiated
    call: Any = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return call(*unwrap_dead_wrappers(args))
