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

import copy
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .backends import reference
from .backends.intensity import ledoit_wolf, oas
from .backends.opaque import product
from .function import Function, GroupFunction, backward_of
from .layout import flat_weights

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


def can_look(t: Tensor) -> bool:
    """Return whether the host can look at values like those of ``t`` without waiting for them."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


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
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Return the sum of the gradients."""
        return {"t": AllReduce.apply(grads[0], ctx.name)}

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, name: str) -> tuple[Tensor, Any]:
        """Sums are entry by entry, whatever the dimensions."""
        return AllReduce.apply(t, name), in_dims[0]


class Slots(NamedTuple):
    """Where the rows of this process are among those of all."""

    name: str  # of the process group
    before: int  # rows of lower ranks
    rows: int  # of this process
    total: int  # of all processes
    weighted: bool  # whether some process has weights


def slots(x: Tensor, sample_weight: Tensor | None, group: Group) -> Slots:
    """Ask every process for the number of its rows, in one all-reduce that the host waits for."""
    rows = x.numel() // x.shape[1]
    own = torch.tensor([[rows, 0 if sample_weight is None else 1]])
    padded = torch.nn.functional.pad(own, (0, 0, group.rank, group.size - 1 - group.rank))
    counts = all_reduce(padded, group.name).tolist()  # [R][2]
    before = sum(n for n, _ in counts[: group.rank])
    total = sum(n for n, _ in counts)
    return Slots(group.name, before, rows, total, any(weighted for _, weighted in counts))


class GatherRows(GroupFunction):
    """``[m, C]`` of each process to ``[M, C]`` on all, where the same is done with them."""

    RESULTS = ("y",)

    @staticmethod
    def forward(x: Tensor, slots: Slots) -> Tensor:
        """Add up rows that stand in slots of their own."""
        after = slots.total - slots.before - slots.rows
        return all_reduce(torch.nn.functional.pad(x, (0, 0, slots.before, after)), slots.name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the slots."""
        ctx.slots = inputs[1]

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """Every process has the gradient of all rows."""
        return {"x": OwnRows.apply(grads[0], ctx.slots)}


class OwnRows(GroupFunction):
    """``[M, C]``, the same on all processes, to the ``[m, C]`` that belong to this one."""

    RESULTS = ("y",)

    @staticmethod
    def forward(x: Tensor, slots: Slots) -> Tensor:
        """Cut them out."""
        return x[slots.before : slots.before + slots.rows].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the slots."""
        ctx.slots = inputs[1]

    @staticmethod
    @backward_of(forward)
    def backward(ctx: Any, *grads: Any) -> dict[str, Tensor | None]:
        """The loss of all processes depends on all rows."""
        return {"x": GatherRows.apply(grads[0], ctx.slots)}


def gather_weights(
    sample_weight: Tensor | None, x: Tensor, dtype: torch.dtype, slots: Slots
) -> Tensor | None:
    """Return the row weights ``[M]`` of all processes, with sum 1; None for equal ones."""
    rows = torch.tensor(slots.total)
    if not slots.weighted:
        check_rows(rows, rows)
        return None
    own = torch.ones(slots.rows, dtype=dtype, device=x.device)
    if sample_weight is not None:
        own = flat_weights(sample_weight, x, dtype)
    weights = GatherRows.apply(own.unsqueeze(1), slots).squeeze(1)
    total = weights.sum()
    check_rows(rows, total)
    p: Tensor = weights / total
    return p


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
    w = flat_weights(sample_weight, x, dtype)
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


def intensity(
    method: str | float | None,
    x: Tensor,
    row_weight: Tensor | None,
    moments: Moments,
    running_covariance: Tensor | None,
    batch_weight: float,
    name: str,
) -> Tensor | None:
    """Return the shrinkage intensity ``[G]`` of the whole batch, as the stage ``intensity``.

    Ledoit-Wolf needs fourth moments about the common mean, which nobody knows before the
    all-reduce of the statistics: it takes a second one, of G numbers.
    """
    covariance = moments.covariance
    groups, size = covariance.shape[:2]
    if method is None:
        return None
    if not isinstance(method, str):
        return covariance.new_full((groups,), method)
    blended = reference.blend(covariance, running_covariance, batch_weight)
    trace, square = blended.diagonal(dim1=-2, dim2=-1).sum(-1), blended.square().sum((-2, -1))
    part = 1.0 if running_covariance is None else batch_weight
    rows = moments.effective_rows / part**2
    if method == "oas":
        return oas(trace, square, rows, size)
    centered = reference.to_groups(x, groups, covariance.dtype)  # [G, M, D]
    centered = centered - moments.mean.reshape(groups, 1, size)
    squared = centered.square().sum(-1).square()  # [G, M]
    p = 1.0 / max(squared.shape[-1], 1) if row_weight is None else row_weight
    fourth = all_reduce(moments.share * (squared * p).sum(-1), name)  # [G]
    return ledoit_wolf(trace, square, fourth - covariance.square().sum((-2, -1)), rows, size)


def check_rows(rows: Tensor, weight: Tensor) -> None:
    """Raise on every process alike if there is nothing to whiten.

    Only where looking costs no synchronisation; elsewhere the output is NaN.
    """
    if not can_look(weight) or torch._C._functorch.is_functorch_wrapped_tensor(weight):
        return
    if rows < 2:
        raise ValueError(
            "whitening over a process group: expected at least 2 rows (N times spatial size) in "
            f"all processes together, got {int(rows)}; a covariance needs more: use a larger "
            "batch, drop_last=True in the DataLoader, or .eval()"
        )
    if weight == 0:
        raise ValueError(
            "whitening over a process group: expected sample_weight values that are not all zero "
            "on all processes, got a sum of 0"
        )


class SyncModule(nn.Module):
    """A layer with the attribute ``process_group``: None, ``"world"`` or a ProcessGroup."""

    process_group: dist.ProcessGroup | str | None = None
    # Attributes that are no state: copies begin without.
    not_copied: tuple[str, ...] = ()

    @classmethod
    def convert_sync(
        cls, module: nn.Module, process_group: dist.ProcessGroup | str | None = "world"
    ) -> nn.Module:
        """Set the process group of every ChannelWhitening layer in ``module``, in place.

        Like ``nn.SyncBatchNorm.convert_sync_batchnorm``; None ends synchronisation.

        Args:
            module: a layer or a model that contains some; returned.
            process_group: as in the constructor.

        Raises:
            TypeError, ValueError: ``process_group`` is none; see :func:`fastwhiten.whiten`.

        Example:
            >>> import torch, fastwhiten
            >>> model = torch.nn.Sequential(fastwhiten.ChannelWhitening(8))
            >>> fastwhiten.ChannelWhitening.convert_sync(model)[0].process_group
            'world'
        """
        check_process_group("ChannelWhitening.convert_sync", process_group)
        for layer in module.modules():
            if isinstance(layer, cls):
                layer.process_group = process_group
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncModule:
        """Copy the layer; a ProcessGroup object cannot be copied, so the copy shares it."""
        memo[id(self.process_group)] = self.process_group
        layer = self.__class__.__new__(self.__class__)
        memo[id(self)] = layer
        layer.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return layer

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of; a pickled layer too."""
        return {k: value for k, value in self.__dict__.items() if k not in self.not_copied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become what :meth:`__getstate__` has described."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start_anew()

    def _start_anew(self) -> None:
        """Set the attributes that no copy shares."""

    def _replicate_for_data_parallel(self) -> SyncModule:
        replica: SyncModule = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._start_anew()
        return replica
