"""vmap rules: a batch of whitening problems is one problem with more groups.

Groups are whitened independently of each other, so a vmapped dimension of size B turns ``C``
channels in ``G`` groups into ``B * C`` channels in ``B * G`` groups. Only row weights are shared
by all groups; when *they* carry the vmapped dimension, the calls run one after another instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# What an argument or result is: how its vmapped dimension is folded away.
ROWS = "rows"  # [M, C] or [N, C, L]: folded into C
CHANNEL = "channel"  # [C] -> [B * C]
GROUP = "group"  # [G, ...] -> [B * G, ...]; also the empty tensors [0]
ROW_WEIGHT = "row_weight"  # [M]: cannot be folded


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


def vmap_by_groups(
    function: Callable[..., Any],
    batch: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    roles: Sequence[str | None],
    out_roles: Sequence[str],
    groups_index: int,
) -> tuple[Any, Any]:
    """Run ``function`` once over a vmapped batch.

    Returns ``(outputs, out_dims)``, what a ``vmap`` staticmethod returns.

    Args:
        function: the Function's ``apply``.
        batch: the vmapped size B.
        in_dims: vmapped dimension of each argument, None where it has none.
        args: the arguments; a Tensor argument whose role is None is not allowed.
        roles: role of each argument (None for non-tensors).
        out_roles: role of each result.
        groups_index: which argument is the number of groups.
    """
    weight_batched = any(
        role == ROW_WEIGHT and dim is not None for role, dim in zip(roles, in_dims, strict=True)
    )
    if weight_batched:
        calls = [
            function(
                *(
                    a if d is None else a.select(d, i).contiguous()
                    for a, d in zip(args, in_dims, strict=True)
                )
            )
            for i in range(batch)
        ]
        outputs = tuple(torch.stack(column) for column in zip(*calls, strict=True))
        return outputs, (0,) * len(outputs)
    folded = [
        fold(a, d, batch, r) if isinstance(a, Tensor) and r not in (None, ROW_WEIGHT) else a
        for a, d, r in zip(args, in_dims, roles, strict=True)
    ]
    folded[groups_index] = args[groups_index] * batch
    outputs = function(*folded)
    unfolded = tuple(unfold(o, batch, r) for o, r in zip(outputs, out_roles, strict=True))
    return unfolded, (0,) * len(out_roles)
