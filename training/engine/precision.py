"""Automatic mixed precision: where it is on, and what stays in float32."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The autocast region of the training step, and the scaler of fp16's gradients.

    Args:
        name: fp32, bf16 or fp16.
        device: That trains.

    Attributes:
        scaler: Scales the loss so that small fp16 gradients do not vanish; leaves out the update of
            a step whose gradients overflowed (see `RateSchedule` for how that counts). Does nothing
            for fp32 and bf16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Create the scaler."""
        self._device = device.type
        self._dtype = _DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products and convolutions use the precision."""
        enabled = self._dtype != torch.float32
        # For float32 the dtype is not used, but it must be one that the device can autocast to.
        dtype = self._dtype if enabled else torch.bfloat16
        return torch.autocast(self._device, dtype=dtype, enabled=enabled)


def at_least_float32(x: Tensor) -> Tensor:
    """Return fp16 and bf16 tensors as float32, others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
