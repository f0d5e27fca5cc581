"""A dry run that notes the launches of Triton's kernels, and lets the reference compute.

``FASTWHITEN_TEST_LAUNCHES=<folder>`` (tools/triton_launches.py) beside a dry run on the CPU: every
process leaves a file there with what Triton would compile. The reference's results, in float64, are
copied into those of the launchers, so that a test goes on to its last launch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

FOLDER = os.environ.get("FASTWHITEN_TEST_LAUNCHES")
# What a stage of the reference takes where a launcher takes something else.
_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "statistics": lambda *a: (*a[:-1], True),
    "sample_statistics": lambda *a: (*a[:-1], True),
    "intensity": lambda *a: (*a, 0.0),
    "backward_matrix": lambda *a: a[:-1],
}


def _computed(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Return the launcher ``name`` with the results of the reference."""
    from fastwhiten.backends import reference

    stage, arguments = getattr(reference, name), _ARGUMENTS.get(name, lambda *a: a)

    def run(*given: Any) -> Any:
        results = launcher(*given)
        if name != "backward_matrix":  # what it takes for a tie depends on the dtype
            given = tuple(a.double() if isinstance(a, torch.Tensor) else a for a in given)
        truth = stage(*arguments(*given))
        alone = isinstance(results, torch.Tensor)
        for result, value in [(results, truth)] if alone else zip(results, truth, strict=True):
            result.copy_(value)
        return results

    return run


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note the launches of this process for the duration, then write them."""
    assert FOLDER is not None
    os.environ["TRITON_INTERPRET"] = "0"  # while kernels are defined: to be compiled
    import triton_launches

    from fastwhiten.backends import triton

    kernels = triton._kernels()
    os.environ["TRITON_INTERPRET"] = "1"  # when they are called: CPU tensors are served
    for name, launcher in vars(kernels).items():
        if name not in ("whole", "sample_serves"):
            setattr(kernels, name, _computed(name, launcher))
    with triton_launches.Recorder() as recorder:
        yield
    triton_launches.write(Path(FOLDER) / f"{os.getpid()}.json", list(recorder.found))
