"""What the input pipeline adds to a training step: at most 5 % of a ResNet-32-sized step on a CPU.

    pytest benchmarks/bench_input_pipeline.py --benchmark-only

A step is forward, backward and update of a residual network of three stages of five blocks (16, 32,
64 channels; 0.46 million parameters, the size of ResNet-32) on 128 images of 3 x 32 x 32. The feed
gathers them from uint8 tensors in memory, augments and normalises them. Both are timed in turns, so
that other load on the machine meets both; ``share`` is the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from training.config import TrainConfig
from training.config.data import AugmentName
from training.data import LongTailedDataset, Split, build_feed
from training.data.feed import Examples
from training.data.options import resolve_options
from training.models.classifier import WhitenedClassifier
from training.models.resnet import SmallResNet
from training.samplers import InstanceSampler

BATCH, CLASSES, IMAGES, TURNS = 128, 10, 12_406, 7
TARGET = 0.05


def _dataset(config: TrainConfig) -> LongTailedDataset:
    """As many random images as CIFAR-10-LT of factor 100 has."""
    generator = torch.Generator().manual_seed(0)
    size = (IMAGES, 3, 32, 32)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    split = Split(images, labels, torch.arange(IMAGES))
    mean = torch.full((3,), 127.5)
    names = tuple(str(k) for k in range(CLASSES))
    options = resolve_options(config)
    return LongTailedDataset("random", names, split, split, split, mean, mean / 2, options)


def _batches(augment: AugmentName, cutout: int) -> Iterator[Examples]:
    config = TrainConfig(dataset="digits-lt")
    config.data.augment, config.data.cutout = augment, cutout
    feed = build_feed(_dataset(config), seed=0)
    sampler = InstanceSampler(IMAGES, BATCH, seed=0, drop_last=True)
    epoch = 0
    while True:
        epoch += 1
        yield from feed.examples(sampler.batches(epoch), epoch)


def _step() -> Callable[[Examples], None]:
    backbone = SmallResNet(3, width=16, blocks=5)
    model = WhitenedClassifier(backbone, torch.nn.Identity(), 64, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(examples: Examples) -> None:
        loss = torch.nn.functional.cross_entropy(model(examples.images), examples.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(
    ("augment", "cutout"),
    [("none", 0), ("shift", 0), ("crop-flip", 0), ("crop-flip", 16), ("autoaugment", 16)],
)
def bench_resident_feed(benchmark: Any, augment: AugmentName, cutout: int) -> None:
    batches, step = _batches(augment, cutout), _step()
    step(next(batches))  # warm up both
    loading, training = [], []
    for _ in range(TURNS):
        start = time.perf_counter()
        examples = next(batches)
        middle = time.perf_counter()
        step(examples)
        loading.append(middle - start)
        training.append(time.perf_counter() - middle)
    share = statistics.median(loading) / statistics.median(training)
    benchmark.extra_info["share"] = share
    benchmark.extra_info["step_seconds"] = statistics.median(training)
    benchmark.pedantic(lambda: next(batches), rounds=TURNS, warmup_rounds=1)
    assert share <= TARGET, f"{100 * share:.1f} % of a step"
