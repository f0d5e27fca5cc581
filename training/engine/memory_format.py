"""The channels-last memory format, and the convolutions whose gradient corrupts memory in it.

oneDNN, which computes PyTorch's convolutions on x86 processors, copies every stride-th pixel to a
buffer before it computes the weights' gradient of a 1 x 1 convolution. In the channels-last format
it begins a later part of that copy at a pixel's index times a whole vector of channels, but has
reserved the channels that there are; where those are fewer, it writes past the end. What is there
decides what comes of it: nothing, a crash, or threads that wait for each other for ever.
https://github.com/uxlfoundation/oneDNN/issues/6035, present in PyTorch 2.13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.errors import ConfigError

# Channels of a vector: 16 with AVX-512, 8 with AVX2. One limit, so that a configuration does not
# depend on the machine.
SAFE_CHANNELS = 16


def unsafe_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions, by name, whose gradient can corrupt memory on a CPU.

    In the channels-last format that is: size 1 x 1, a stride in either direction, no padding, no
    groups, fewer than 16 input channels. Whether it does also depends on the image's size, the
    batch and the processor.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(15, 32, 1, 2), nn.Conv2d(32, 64, 1, 2))
        >>> list(unsafe_convolutions(model))
        ['0']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and tuple(module.stride) != (1, 1)
        and module.padding in ("valid", (0, 0))
        and module.groups == 1
        and module.in_channels < SAFE_CHANNELS
    }


def check_channels_last(model: nn.Module, device: torch.device, option: str) -> None:
    """Check that a model can be trained in the channels-last format on a device.

    Args:
        model: The model.
        device: Where it is trained; only a CPU is in question.
        option: What asks for the format: "channels_last", or "compile", since torch.compile
            puts all convolutions on a CPU into it.

    Raises:
        ConfigError: If it has a convolution whose gradient can corrupt memory.
    """
    unsafe = unsafe_convolutions(model) if device.type == "cpu" else {}
    if not unsafe:
        return
    found = ", ".join(
        f"{name} ({module.in_channels} to {module.out_channels} channels, stride "
        f"{' x '.join(map(str, module.stride))})"
        for name, module in unsafe.items()
    )
    if option == "compile":
        found += "; torch.compile takes the channels-last format there"
    raise ConfigError(
        f"{option}: expected on a CPU a model without 1 x 1 convolutions that have a stride and "
        f"fewer than {SAFE_CHANNELS} input channels, got {found}. PyTorch's gradient of these "
        "writes past its buffer in the channels-last format: it corrupts memory, crashes or hangs "
        "(https://github.com/uxlfoundation/oneDNN/issues/6035). Use a model.width of at least "
        f"{SAFE_CHANNELS} or another model.name, or leave --{option.replace('_', '-')} out."
    )


def to_channels_last(model: Any) -> Any:
    """Put the weights of convolutions into the channels-last format."""
    return model.to(memory_format=torch.channels_last)
