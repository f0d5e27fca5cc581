"""Statistics over a process group: one all-reduce makes every process know the whole batch.

Every process sends the number of its rows, their weight, mean and *centred* second moment; means
are never squared, so nothing cancels where ``|mean| >> std``. Let process r hold the share ``a_r``
of the weight, with mean ``m_r`` and covariance ``S_r``. Chan, Golub and LeVeque (1979) give

    m = sum a_r m_r,    S = sum a_r S_r + sum a_r (m_r - m)(m_r - m)^T.

The sums over ``S_r`` add up; the second term needs each ``m_r`` on its own. So the buffer of the
all-reduce has one common block for ``S_r`` and, for each process, a slot that the others leave at
zero. That is ``G D^2 + R (C + 3)`` numbers with R processes, where gathering what everyone has
would take ``R (G D^2 + C + 3)``. A sum over uncentred values with a common shift (the running mean)
would be smaller still, and wrong to the digit in a first epoch, when the shift is not known.

All processes get the same bits from the all-reduce, so what follows is the same bits on all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .backends import reference
from .backends.opaque import product
from .function_base import Function
from .precision import backward_in_own_precision

WORLD = "world"
HEADER = 3  # numbers in front of the mean: rows, weight, sum of squared normalised weights


class Group(NamedTuple):
    """A process group as the graph sees it: plain values, which can be traced and copied."""

    name: str
    rank: int
    size: int


def check_process_group(caller: str, process_group: Any) -> None:
    """Check what can be said about a ``process_group`` argument at any time.

    The default group need not exist yet: a model may be built before ``init_process_group``.

    Raises:
        TypeError: neither None, a string nor a ProcessGroup.
        ValueError: another string than ``"world"``, a group without this process, or a build of
            PyTorch without ``torch.distributed``.
    """
    if process_group is None:
        return
    if not dist.is_available():
        raise ValueError(
            f"{caller}: expected process_group to be None, because this build of PyTorch has no "
            f"torch.distributed, got {process_group!r}"
        )
    if isinstance(process_group, str):
        if process_group != WORLD:
            raise ValueError(
                f'{caller}: expected process_group to be None, "world" or a ProcessGroup, '
                f"got {process_group!r}"
            )
        return
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"{caller}: expected a process_group that contains this process, got the placeholder "
            "that torch.distributed.new_group returns to processes outside of the group; give "
            "each process the group that it is a member of"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f'{caller}: expected process_group to be None, "world" or a '
            f"torch.distributed.ProcessGroup, got {type(process_group).__name__}"
        )


def resolve(caller: str, process_group: Any) -> Group | None:
    """Return the group to synchronise over, None for a single process.

    Raises:
        TypeError: as :func:`check_process_group`.
        ValueError: as :func:`check_process_group`, or the process group is not initialised.
    """
    check_process_group(caller, process_group)
    if process_group is None:
        return None
    if not dist.is_initialized():
        raise ValueError(
            f"{caller}: process_group={process_group!r} synchronises statistics over processes, "
            "but torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use process_group=None"
        )
    group: Any = dist.group.WORLD if isinstance(process_group, str) else process_group
    # get_rank knows whether the group still exists, and says so.
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return Group(group.group_name, rank, size) if size > 1 else None


def size(caller: str, process_group: Any) -> int:
    """Return the number of processes that :func:`resolve` would synchronise over."""
    group = resolve(caller, process_group)
    return 1 if group is None else group.size


def all_reduce(t: Tensor, name: str) -> Tensor:
    """Return the sum of ``t`` over the processes of the group called ``name``.

    The functional collective: it can be traced by ``torch.compile``.
    """
    ops = torch.ops._c10d_functional
    total: Tensor = ops.wait_tensor(ops.all_reduce(t.contiguous(), "sum", name))
    return total


class AllReduce(Function):
    """Differentiable :func:`all_reduce`.

    Each process adds its own loss; the gradient of their sum with respect to what a process put in
    is the sum of the gradients of what the processes got out.
    """

    @staticmethod
    def forward(t: Tensor, name: str) -> Tensor:
        """Return the sum over the processes."""
        return all_reduce(t, name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the group."""
        ctx.name = inputs[1]

    @staticmethod
    @backward_in_own_precision
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """Return the sum of the gradients."""
        return AllReduce.apply(grads[0], ctx.name), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, name: str) -> tuple[Tensor, Any]:
        """Sums are entry by entry, whatever the dimensions."""
        return AllReduce.apply(t, name), in_dims[0]


def weigh_rows(
    sample_weight: Tensor | None, x: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Return this process's row weights and what the others must know of them.

    Args:
        sample_weight: ``[N]`` or ``[N, *spatial]`` >= 0, None for 1 each.
        x: ``[N, C, *spatial]``; N may be 0.
        dtype: ``T``.

    Returns:
        Row weights ``[M]`` with sum 1, None for equal ones, and the header ``[3]``: number of rows,
        sum of the weights, sum of the squared row weights.
    """
    rows = x.numel() // x.shape[1]
    count = torch.full((1,), float(rows), dtype=dtype, device=x.device)
    if sample_weight is None:
        return None, torch.cat([count, count, 1.0 / count if rows else count])
    w = sample_weight.detach().to(dtype)
    if w.dim() == 1 and x.dim() > 2:
        w = w.reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape[0], *x.shape[2:])
    w = w.reshape(-1)  # [M]
    # A negative weight where values are not looked at (on a GPU) makes everything NaN.
    total = torch.where((w >= 0).all(), w.sum(), float("nan"))
    # Without any weight here the share is 0, and any weights that sum to 1 serve.
    p = torch.where(total == 0, 1.0 / max(rows, 1), w / total)
    return p, torch.cat([count, total.reshape(1), p.square().sum().reshape(1)])


class Moments(NamedTuple):
    """Statistics of the whole batch, the same on every process but for ``share``."""

    mean: Tensor  # [C] T
    covariance: Tensor  # [G, D, D] T
    share: Tensor  # [] T: this process's part of the weight
    effective_rows: Tensor  # [] T: 1 / sum p^2 over all rows
    rows: Tensor  # [] T: number of rows
    weight: Tensor  # [] T: sum of the sample weights


def combine(mean: Tensor, covariance: Tensor, header: Tensor, group: Group) -> Moments:
    """Return the moments of all rows of all processes: the formula above, in one all-reduce.

    Fewer than two rows or no weight at all give NaN.

    Args:
        mean: ``[C]`` of this process's rows, 0 without rows.
        covariance: ``[G, D, D]`` likewise, about that mean.
        header: ``[3]`` from :func:`weigh_rows`.
        group: of more than one process.
    """
    own = torch.cat([header, mean])  # [3 + C]
    before, after = group.rank * own.numel(), (group.size - 1 - group.rank) * own.numel()
    slots = torch.nn.functional.pad(own, (before, after))  # [R (3 + C)]
    buffer = torch.cat([(header[1] * covariance).reshape(-1), slots])
    reduced = all_reduce(buffer, group.name)
    within = reduced[: covariance.numel()].reshape(covariance.shape)  # sum of weight times S_r
    slots = reduced[covariance.numel() :].reshape(group.size, -1)  # [R, 3 + C]
    counts, weights, concentrations = slots[:, 0:1], slots[:, 1:2], slots[:, 2:3]  # [R, 1]
    means = slots[:, HEADER:]  # [R, C]
    rows, weight = counts.sum(), weights.sum()
    total = torch.where((rows >= 2) & (weight > 0), weight, float("nan"))
    shares = weights / total  # [R, 1]
    center = (shares * means).sum(0)  # [C]
    # The second pass removes what rounding left in the mean, as the statistics stages do.
    center = center + (shares * (means - center)).sum(0)
    groups, size = covariance.shape[:2]
    deviations = ((means - center) * shares.sqrt()).reshape(group.size, groups, size)
    deviations = deviations.transpose(0, 1)  # [G, R, D]
    between = product(deviations.mT, deviations)
    return Moments(
        center,
        reference.symmetrize(within / total + between).contiguous(),
        shares[group.rank, 0],
        1.0 / (shares.square() * concentrations).sum(),
        rows,
        weight,
    )


def sum_backward(cross: Tensor, grad_sum: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the sums over the processes of ``cross`` ``[G, D, D]`` and ``grad_sum`` ``[C]``."""
    reduced = all_reduce(torch.cat([cross.reshape(-1), grad_sum]), name)
    return reduced[: cross.numel()].reshape(cross.shape), reduced[cross.numel() :]
