"""Devices and processes: who is who, what they exchange, and which rows each one takes.

The plan of batches is the same on every process; of each batch, process r of n takes the rows
r, r + n, r + 2n, … (`training.samplers.rank_rows`). A process' mean loss is weighted by
n * local rows / all rows, so that the mean over processes, which `DistributedDataParallel` takes of
the gradients, is the gradient of the mean over all rows, also where the shares differ in size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.config import TrainConfig
from training.data.feed import Examples
from training.errors import ConfigError
from training.losses import ClassificationLoss

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """The processes of a run; every method that exchanges something is called by all of them.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        control: A gloo group for small exchanges between CPUs; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> Tensor:
        """Add a tensor up over the processes, in place, on its device."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def maximum(self, value: int) -> int:
        """Return the largest of the processes' integers."""
        if self.world_size == 1:
            return value
        values = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return int(values)

    def gather(self, value: T) -> list[T]:
        """Return the objects of all processes, in order of rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_first(self, function: Callable[[], T]) -> T:
        """Call a function on the first process; return its result, or raise its error, on all."""
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


@contextmanager
def open_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started; a process on its own is the only one.

    A process group that exists already is used and left open.

    Args:
        device: That trains; NCCL connects GPUs, gloo CPUs.
    """
    if dist.is_initialized():
        yield _describe(device)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield _describe(device)
    finally:
        dist.destroy_process_group()


def _describe(device: torch.device) -> Processes:
    if dist.get_world_size() == 1:
        return Processes()
    control = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD
    return Processes(dist.get_rank(), dist.get_world_size(), control)


def select_device(name: str) -> torch.device:
    """Return the torch device of a name; "auto" is cuda where there is one.

    Raises:
        ConfigError: If the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        raise ConfigError(
            f"device: expected auto, cpu or a device that torch can use here, got {name!r} "
            f"({str(error).splitlines()[0]})."
        ) from error


def training_device(config: TrainConfig) -> torch.device:
    """Return where this process trains: among several GPUs, that of its number on its machine.

    Raises:
        ConfigError: If the device is not there, there are more processes than GPUs, or it cannot
            do what is asked for.
    """
    device = select_device(config.device)
    if config.sync_bn and device.type != "cuda":
        raise ConfigError(
            f"sync_bn: expected false on {device.type} (torch's SyncBatchNorm needs CUDA), got "
            "true; leave it out: each process then normalises by its own rows."
        )
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"torchrun: expected at most {count} processes on this machine, one per GPU, got local "
            f"rank {number}; lower --nproc-per-node, or use --device cpu."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def loss_weight(
    loss: ClassificationLoss, examples: Examples, processes: Processes
) -> float | Tensor:
    """Return what to multiply this process' loss by, so that the average is that of the batch.

    world size * own denominator / denominator of the whole batch (see `ClassificationLoss`): the
    shares of the rows, or of their weights where the loss weights classes. 1 on a single process.
    """
    if processes.world_size == 1:
        return 1.0
    labels = examples.labels
    if loss.row_weights(labels) is None:  # known without asking the others
        return processes.world_size * len(labels) / len(examples.batch.positions)
    own = loss.denominator(labels)  # []
    return processes.world_size * own / processes.sum_(own.clone())


def wrap_model(model: nn.Module, processes: Processes) -> nn.Module:
    """Return what the training step calls: the model, which averages gradients if it must.

    Buffers are not broadcast before each step: see `average_running_statistics`.
    """
    if processes.world_size == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False)


def synchronise_layers(
    model: M, processes: Processes, sync_bn: bool, sync_whitening: bool | None
) -> M:
    """Make normalisation layers use the rows of all processes, as configured.

    Args:
        model: On the CPU, not trained yet.
        processes: A single process needs nothing.
        sync_bn: See `training.config.RuntimeConfig`.
        sync_whitening: See `training.config.RuntimeConfig`; null is true here.
    """
    if processes.world_size == 1:
        return model
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if sync_whitening is not False:
        from fastwhiten import ChannelWhitening

        ChannelWhitening.convert_sync(model, "world")
    return model


def average_running_statistics(model: nn.Module, processes: Processes) -> None:
    """Replace the floating-point buffers of the state by their mean over the processes.

    Layers that normalise by their own process' rows have seen different rows; afterwards all
    processes evaluate and save the same model.
    """
    if processes.world_size == 1:
        return
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name not in parameters and value.is_floating_point():
            processes.sum_(value).div_(processes.world_size)
