"""Channels-last is refused where PyTorch's gradient corrupts memory, and only there."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from training.cli import run
from training.config import TrainConfig
from training.data import build_dataset
from training.engine.memory_format import check_channels_last, unsafe_convolutions
from training.engine.trainer import build_trainer
from training.errors import ConfigError
from training.models.resnet import CifarResNet, SmallResNet
from training.reproducibility import resolve_seeds
from training.runs.finished import read_run, restore_model

CPU = torch.device("cpu")

# One thread: with several, oneDNN's threads may hang instead.
GRADIENT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its end leaves no file
import torch
torch.set_num_threads(1)
channels = int(sys.argv[1])
convolution = torch.nn.Conv2d(channels, 16, 1, stride=2).to(memory_format=torch.channels_last)
for _ in range(100):
    x = torch.randn(8, channels, 128, 128).to(memory_format=torch.channels_last)
    convolution(x).sum().backward()
"""


def gradient_in_a_process(isa: str, channels: int) -> tuple[int, str]:
    """Exit status and standard error of a process that computes gradients with oneDNN up to isa.

    Nothing that is preloaded (a sanitizer, another allocator): what it does with the memory behind
    a buffer is its own matter.
    """
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment |= {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GRADIENT, str(channels)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's kernels for x86")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("isa", "needed", "corrupts", "works"),
    [("AVX2", ("AVX2", "AVX512"), 4, 8), ("AVX512_CORE", ("AVX512",), 8, 16)],
)
def test_torch_corrupts_memory(isa: str, needed: tuple[str, ...], corrupts: int, works: int):
    """The reason for `check_channels_last`, as long as there is one."""
    if torch.backends.cpu.get_cpu_capability() not in needed:
        pytest.skip(f"this processor has no {isa}")
    status, errors = gradient_in_a_process(isa, works)
    assert status == 0, errors
    status, errors = gradient_in_a_process(isa, corrupts)
    assert status != 0, (
        f"torch {torch.__version__} no longer crashes here: remove `check_channels_last` and "
        "`unsafe_convolutions` (training/engine/memory_format.py) with this test as soon as all "
        "versions of torch that are supported have it mended"
    )
    assert -status in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS), errors


@pytest.mark.parametrize("channels", [1, 4, 15, 16])
@pytest.mark.parametrize("stride", [2, 3, (1, 2), (2, 1)])
def test_what_is_unsafe(channels: int, stride: int | tuple[int, int]):
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 8, 1, stride))
    assert list(unsafe_convolutions(model)) == (["1"] if channels < 16 else [])


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: nn.Conv2d(4, 8, 1),
        lambda: nn.Conv2d(4, 8, 3, 2),
        lambda: nn.Conv2d(4, 8, (1, 3), 2),
        lambda: nn.Conv2d(4, 8, 1, 2, padding=1),
        lambda: nn.Conv2d(8, 8, 1, 2, groups=2),
        lambda: nn.Conv2d(8, 8, 1, 2, groups=8),
    ],
    ids=["no stride", "3 x 3", "1 x 3", "padded", "grouped", "depthwise"],
)
def test_what_is_safe(convolution):
    assert not unsafe_convolutions(convolution())


def test_resnet_32_is_safe():
    assert not unsafe_convolutions(CifarResNet(3))


def test_the_message_says_what_why_and_what_to_do():
    with pytest.raises(ConfigError) as raised:
        check_channels_last(SmallResNet(1, 8), CPU, "channels_last")
    message = str(raised.value)
    assert "channels_last: expected on a CPU a model without 1 x 1 convolutions" in message
    assert "got stages.1.shortcut.0 (8 to 16 channels, stride 2 x 2). " in message
    assert "corrupts memory, crashes or hangs" in message
    assert "Use a model.width of at least 16" in message
    assert "leave --channels-last out" in message


def test_elsewhere_than_on_a_cpu_it_is_allowed():
    check_channels_last(SmallResNet(1, 4), torch.device("cuda"), "channels_last")


@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_a_narrow_network_is_refused_on_a_cpu(config: TrainConfig, option: str):
    """torch.compile lays out convolutions channels-last by itself."""
    config = replace(config, **{option: True})
    seeds = resolve_seeds(config.seed, config.seeds)
    dataset = build_dataset(config, seeds.split)
    for width, found in (
        (4, r"stages\.1\.\S+ \(4 .* backbone\.stages\.2\.\S+ \(8 "),
        (8, r"stages\.1\.\S+ \(8 "),
    ):
        config.model.width = width
        with pytest.raises(ConfigError, match=rf"^{option}: .* got backbone\.{found}"):
            build_trainer(config, dataset, seeds, CPU)
    config.model.width = 16
    build_trainer(config, dataset, seeds, CPU)


def test_the_command_refuses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--model.width", "4", "--channels-last", "true", "--output.root", str(tmp_path)]
    assert run(["train", "--whitening", "none", "--device", "cpu", *arguments]) == 2
    assert "error: channels_last: expected on a CPU" in capsys.readouterr().err


def test_a_run_from_elsewhere_keeps_the_usual_format(trained: Path):
    """What a GPU has trained in channels-last can be evaluated and diagnosed on a CPU."""
    run = read_run(trained)
    run.config.channels_last = True
    model = restore_model(run, 1, "last", CPU)
    assert run.config.model.width == 4
    assert model.backbone.stages[0].conv1.weight.is_contiguous()
