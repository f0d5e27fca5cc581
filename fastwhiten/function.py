"""``torch.autograd.Function`` whose arguments have names, a vmap rule, and a quicker call.

Batches of whitening problems are one problem with more groups. Groups are whitened independently of
each other, so a vmapped dimension of size B turns ``C`` channels in ``G`` groups into ``B * C``
channels in ``B * G`` groups. Only row weights are shared by all groups; when *they* carry the
vmapped dimension, the calls run one after another instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from .precision import own_precision

# What a tensor is: how its vmapped dimension is folded away.
ROWS = "rows"  # [M, C] or [N, C, L]: folded into C
CHANNEL = "channel"  # [C] -> [B * C]
GROUP = "group"  # [G, ...] -> [B * G, ...]; also the empty tensors [0]
ROW_WEIGHT = "row_weight"  # [M]: cannot be folded

# By name, in every Function; what is not here is a GROUP.
_ROLES = {
    **dict.fromkeys(("x", "y", "grad", "dx", "scaled"), ROWS),
    **dict.fromkeys(("gamma", "beta", "mean", "dgamma", "dbeta"), CHANNEL),
    **dict.fromkeys(("row_weight", "header"), ROW_WEIGHT),
}


def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


class Function(torch.autograd.Function):
    """``torch.autograd.Function`` with a type for ``apply`` and names for its arguments."""

    ARGUMENTS: tuple[str, ...]  # of forward

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read the names of the arguments."""
        super().__init_subclass__(**kwargs)
        cls.ARGUMENTS = _names(cls.forward)

    if TYPE_CHECKING:  # PyTorch leaves it untyped

        @classmethod
        def apply(cls, *args: Any) -> Any:
            """Run the Function."""


class GroupFunction(Function):
    """A Function that serves ``vmap`` by more groups.

    Where its ``forward`` depends on them, it takes ``groups``, or ``options`` that have them.
    """

    RESULTS: tuple[str, ...]  # names of what forward returns; there may be fewer

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Fold the vmapped dimension into the groups."""
        batch, dims = info.batch_size, dict(zip(cls.ARGUMENTS, in_dims, strict=True))
        named = dict(zip(cls.ARGUMENTS, args, strict=True))
        tensors = {name: t for name, t in named.items() if isinstance(t, Tensor)}
        if any(_ROLES.get(n) == ROW_WEIGHT and dims[n] is not None for n in tensors):
            calls = [
                _tuple(cls.apply(*(named | _select(tensors, dims, i)).values()))
                for i in range(batch)
            ]
            outputs = tuple(torch.stack(column) for column in zip(*calls, strict=True))
        else:
            for name, t in tensors.items():
                role = _ROLES.get(name, GROUP)
                if role != ROW_WEIGHT:
                    named[name] = fold(t, dims[name], batch, role)
            if "groups" in named:
                named["groups"] *= batch
            elif "options" in named:
                options = named["options"]
                named["options"] = options._replace(groups=options.groups * batch)
            found = zip(cls.RESULTS, _tuple(cls.apply(*named.values())), strict=False)
            outputs = tuple(unfold(t, batch, _ROLES.get(name, GROUP)) for name, t in found)
        return (outputs, (0,) * len(outputs)) if len(cls.RESULTS) > 1 else (outputs[0], 0)


def backward_of(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a ``backward`` that returns gradients by the names of ``forward``'s arguments.

    Those that it does not name have none. Whoever calls it under autocast gets float32 products: a
    gradient penalty does so, whose first derivative is taken inside the autocast block. And TF32 is
    on during most backward passes where it is on at all.
    """
    names = _names(forward)

    def decorate(backward: Callable[..., dict[str, Tensor | None]]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            for grad in grads:
                if grad is not None:
                    with own_precision(grad):
                        found = backward(ctx, *grads)
                    break
            else:
                found = backward(ctx, *grads)
            return tuple([found.get(name) for name in names])

        return wrapped

    return decorate


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _select(
    tensors: dict[str, Tensor], dims: dict[str, int | None], index: int
) -> dict[str, Tensor]:
    return {
        name: t if dims[name] is None else t.select(dims[name], index).contiguous()  # type: ignore[arg-type]
        for name, t in tensors.items()
    }


def fold(t: Tensor, dim: int | None, batch: int, role: str) -> Tensor:
    """Fold the vmapped dimension ``dim`` of ``t`` into channels or groups.

    ``dim`` is None where ``t`` is not vmapped, so repeated.
    """
    t = t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
    if role == ROWS:
        t = t.movedim(0, 1)  # [M, B, C] or [N, B, C, L]
        return t.reshape(t.shape[0], batch * t.shape[2], *t.shape[3:]).contiguous()
    # Repeated matrices are views without a stride, and the compiled stages take contiguous ones.
    return t.reshape(batch * t.shape[1], *t.shape[2:]).contiguous()


def unfold(t: Tensor, batch: int, role: str) -> Tensor:
    """Undo :func:`fold`: the vmapped dimension comes out first."""
    if role == ROWS:
        return t.reshape(t.shape[0], batch, t.shape[1] // batch, *t.shape[2:]).movedim(1, 0)
    return t.reshape(batch, t.shape[0] // batch, *t.shape[1:])


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
