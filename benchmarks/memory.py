"""Peak memory of one forward + backward, measured by the operating system in a process of its own.

Buffers of compiled kernels do not pass through PyTorch's allocator, so the resident set is what
counts: ``python -m benchmarks.memory fused 6`` prints the growth of the peak in bytes for scene 6.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .scenes import SCENES, Scene

ROOT = Path(__file__).resolve().parent.parent


def synchronised(function: Callable[..., object], device: str) -> Callable[..., object]:
    """Return ``function`` that comes back when the device has done the work, not when it is queued.

    On the CPU that is the function itself.
    """
    if device == "cpu":
        return function
    import torch

    def run(*arguments: object) -> object:
        result = function(*arguments)
        torch.cuda.synchronize(device)
        return result

    return run


def seconds(function: Callable[[], object]) -> float:
    """Return the shortest of three runs in seconds; of fewer once they took half a second."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 0.5:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def repeat(
    benchmark: Any,
    function: Callable[..., object],
    setup: Callable[[], Any],
    device: str = "cpu",
    graphs: bool = True,
) -> None:
    """Time ``function`` on what ``setup`` returns, arguments and keywords, for half a second.

    At least three rounds, after three that do not count; what takes a tenth of a second or more is
    warm from the estimate. On a GPU that is the host's clock; `extra_info` gets the device's too.
    """
    arguments, keywords = setup()
    timed = synchronised(function, device)
    estimate = seconds(lambda: timed(*arguments, **keywords))
    rounds = int(min(400, max(3, 0.5 / estimate)))
    warmup = 3 if estimate < 0.1 else 0
    benchmark.pedantic(timed, setup=setup, rounds=rounds, warmup_rounds=warmup)
    if device == "cuda":
        from .gpu_timing import measure

        runs = {"": lambda: function(*arguments, **keywords)}
        benchmark.extra_info.update(measure(runs, device, min(30, rounds), graphs)[""])


def _status(key: str) -> int:
    """Return a figure of /proc/self/status in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"memory: /proc/self/status has no {key}; this measurement needs Linux")


def measure(provider: str, scene: Scene) -> int:
    """Return the peak of forward + backward beyond input and incoming gradient, in bytes."""
    import torch

    from .providers import PROVIDERS

    whiten = PROVIDERS[provider](scene)
    grad = torch.randn(scene.shape)
    x = scene.input().requires_grad_()
    whiten(x).backward(grad)  # loads libraries, starts threads, fills the pools that are kept
    x.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    whiten(x).backward(grad)
    return _status("VmHWM") - before


def peak_in_inputs(provider: str, scene: Scene) -> float:
    """Run :func:`measure` in a fresh process; return the peak in multiples of the input's size."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.memory", provider, str(SCENES.index(scene))]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    return int(done.stdout) / (4 * scene.numel)


if __name__ == "__main__":
    print(measure(sys.argv[1], SCENES[int(sys.argv[2])]))
