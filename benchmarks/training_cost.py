"""What a training step asks of a GPU: operations, bytes, kernels; and the time that follows.

    python -m benchmarks.training_cost [--precision bf16] [--whitening fused] [--runs 60]

No GPU is needed and none is used: the step is taken with fake tensors (shapes without numbers), and
each of its operations is counted. Bytes are those of its operands, nothing is kept in a cache; a
convolution's gradient is two kernels, and so are a batch normalisation (sums, then the map) and its
gradient. Times are estimates, from the rates that are passed:

* bound: every kernel at the full rate of memory or of the matrix units, whichever takes longer;
* half: at half of these rates, a guess at what kernels of 16 to 64 channels reach;
* alone: the same with a pause after every kernel, as in a run that has the device to itself.

Runs side by side fill each other's pauses: they should come near "half". What the estimate does not
know: which kernels the library chooses, its copies between layouts, what the second-level cache
saves, the augmentation's small kernels, evaluation, and what is done once a run or once an epoch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from training.config import TrainConfig
from training.config.model import ModelConfig
from training.engine.optim import Precision, at_least_float32
from training.losses import CrossEntropy
from training.models import build_model

_TWO_KERNELS = ("convolution_backward", "native_batch_norm", "native_batch_norm_backward")
_NO_KERNEL = ("empty", "empty_like", "_unsafe_view")
_MATRIX = ("convolution", "convolution_backward", "addmm", "mm", "bmm")


@dataclass(frozen=True)
class Kernel:
    """One launch: its name, floating-point operations of matrix units, bytes moved."""

    name: str
    flops: float
    bytes: float


class Counter(TorchDispatchMode):
    """Collects the kernels of the operations inside."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        """Run an operation and count it."""
        kwargs = kwargs or {}
        results = operation(*args, **kwargs)
        namespace, name = operation._schema.name.split("::")
        aliases = [result.alias_info for result in operation._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if namespace == "prim" or view or name in _NO_KERNEL:
            return results
        count = 2 if name in _TWO_KERNELS else 1
        read, written = (sum(map(_bytes, _tensors(part))) for part in ((args, kwargs), results))
        flops = 0.0
        if name in _MATRIX:
            flops = flop_registry[operation.overloadpacket](*args, **kwargs, out_val=results)
        # Of two kernels each reads everything; they share what is written.
        self.kernels.extend([Kernel(name, flops / count, read + written / count)] * count)
        return results


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def count_step(config: TrainConfig, batch: int, size: int, classes: int) -> list[Kernel]:
    """Return the kernels of forward, loss, backward, update on images [batch, 3, size, size]."""
    with FakeTensorMode():
        model = build_model(config, 3, classes, seed=0).train()
        precision = Precision(config.precision, torch.device("cpu"))
        images = torch.randn(batch, 3, size, size)
        labels = torch.randint(classes, (batch,))
        loss = CrossEntropy()
        counter = Counter()
        with counter:
            with precision.autocast():
                logits = model(images)
            loss(at_least_float32(logits), labels).backward()
    # The update in one kernel: weight, gradient and momentum are read, weight and momentum written.
    parameters = sum(map(_bytes, model.parameters()))
    return [*counter.kernels, Kernel("update", 0.0, 5.0 * parameters)]


def bound(kernels: list[Kernel], bandwidth: float, flops: float) -> float:
    """Return the seconds that these take at the full rates, bytes and operations per second."""
    return math.fsum(max(k.bytes / bandwidth, k.flops / flops) for k in kernels)


def main(arguments: list[str] | None = None) -> None:
    """Print the counts of a step of ResNet-32, and the time of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--whitening", default="none", choices=("none", "batchnorm"))
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=200 * 97, help="of a run")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s; a copy on an H100")
    parser.add_argument(
        "--tflops", type=float, help="of the matrix units; default 800 (bf16), 400 (fp32: TF32)"
    )
    parser.add_argument("--pause", type=float, default=2.0, help="us after a kernel of a graph")
    chosen = parser.parse_args(arguments)
    config = TrainConfig(whitening=chosen.whitening, loss="ce", precision=chosen.precision)
    config.model = ModelConfig("resnet-32")
    kernels = count_step(config, 128, 32, 10)
    tflops = chosen.tflops or {"bf16": 800.0, "fp32": 400.0}[chosen.precision]
    fastest = bound(kernels, chosen.bandwidth * 1e12, tflops * 1e12)
    times = {
        "bound": fastest,
        "half": 2 * fastest,
        "alone": 2 * fastest + len(kernels) * chosen.pause * 1e-6,
    }
    print(
        f"a step: {len(kernels)} kernels, {sum(k.flops for k in kernels) / 1e9:.1f} GFLOP, "
        f"{sum(k.bytes for k in kernels) / 1e9:.2f} GB"
    )
    for name, seconds in times.items():
        minutes = seconds * chosen.steps * chosen.runs / 60
        print(
            f"{name:>6}: {1e3 * seconds:.2f} ms a step, {minutes:.0f} min for {chosen.runs} runs "
            f"of {chosen.steps} steps (estimated)"
        )


if __name__ == "__main__":
    main()
