"""The compiled stages on a device, behind CPU tensors: the tests of any backend run on them.

``FASTWHITEN_TEST_DEVICE=cpu`` is a dry run: the same tests on the CPU's kernels, where there is no
GPU. What needs CUDA itself (graphs, streams) is then left out.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fastwhiten import backends

DEVICE = torch.device(os.environ.get("FASTWHITEN_TEST_DEVICE", "cuda"))
DRY_RUN = DEVICE.type == "cpu"


class DeviceStages:
    """The stages of a backend with arguments moved to the device, and results back."""

    def __init__(self, name: str) -> None:
        self._stages = backends.get(name)

    def __getattr__(self, name: str) -> Any:
        stage = getattr(self._stages, name)

        def run(*arguments: Any) -> Any:
            moved = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]
            results = stage(*moved)
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(result.cpu() for result in results)

        return run
