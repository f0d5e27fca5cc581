"""benchmarks.training_cost: what a step of ResNet-32 is counted to take."""

from __future__ import annotations

import re

import pytest

from benchmarks.training_cost import Kernel, bound, count_step, main
from training.config import TrainConfig
from training.config.model import ModelConfig


def test_the_counts_are_those_by_hand():
    config = TrainConfig(whitening="none", loss="ce")
    config.model = ModelConfig("resnet-32")
    kernels = count_step(config, batch=2, size=32, classes=10)

    def of(name: str) -> list[Kernel]:
        return [kernel for kernel in kernels if kernel.name == name]

    stem = 9 * 3 * 16 * 32**2  # multiply-adds of an image
    blocks = sum(9 * (9 * c * c + c * c // 2) * s**2 for c, s in ((32, 16), (64, 8)))
    forward = stem + 10 * 9 * 16 * 16 * 32**2 + blocks
    assert sum(k.flops for k in of("convolution")) == 2 * 2 * forward
    # The images need no gradient.
    assert sum(k.flops for k in of("convolution_backward")) == 2 * 2 * (2 * forward - stem)
    assert [len(of(n)) for n in ("convolution", "relu", "native_batch_norm")] == [31, 31, 62]
    values = 2 * (11 * 16 * 32**2 + 10 * 32 * 16**2 + 10 * 64 * 8**2)  # behind all convolutions
    assert sum(k.bytes for k in of("relu")) == 2 * 4 * values
    normalised = sum(k.bytes for k in of("native_batch_norm"))
    assert normalised == pytest.approx(3 * 4 * values, rel=0.01)  # read twice, written once


def test_a_kernel_takes_the_longer_of_two_times():
    kernels = [Kernel("a", flops=8.0, bytes=1.0), Kernel("b", flops=0.0, bytes=3.0)]
    assert bound(kernels, bandwidth=1.0, flops=4.0) == 2.0 + 3.0


def test_half_precision_moves_half_of_the_bytes(capsys: pytest.CaptureFixture[str]):
    found = {}
    for precision in ("fp32", "bf16"):
        main(["--precision", precision, "--runs", "3", "--steps", "10"])
        text = capsys.readouterr().out
        assert text.count("for 3 runs of 10 steps (estimated)") == 3
        found[precision] = float(re.search(r"([\d.]+) GB", text)[1])
    assert found["bf16"] == pytest.approx(found["fp32"] / 2, rel=0.02)
