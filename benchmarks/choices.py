"""Who is faster on this processor: our products and eigensolver, or BLAS and LAPACK.

    python -m benchmarks.choices

prints a line a case: forward + backward of layers, by our products and by BLAS's, and eigenproblems
of growing order, by us and by LAPACK. What csrc/cpu chooses follows from such tables. Two processes
(FASTWHITEN_CPU_LIBRARY is read once) take turns; a time is the median of their rounds. For the
choice with lesser instruction sets: FASTWHITEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

import fastwhiten

LAYERS = ((128, 512), (512, 512), (2048, 256), (256, 2048), (16, 512, 14, 14))
ORDERS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
ROUNDS = 9
SECONDS = 0.05  # of a round


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is timed, by name."""
    generator = torch.Generator().manual_seed(0)
    for shape in LAYERS:
        x = torch.randn(shape, generator=generator, requires_grad=True)
        grad = torch.randn(shape, generator=generator)

        def step(x: torch.Tensor = x, grad: torch.Tensor = grad) -> object:
            return torch.autograd.grad(fastwhiten.whiten(x), x, grad)

        yield f"layer {shape}", step
    for order in ORDERS:
        rows = torch.randn(4 * order, order, generator=generator)
        a = (rows.T @ rows / len(rows)).unsqueeze(0)
        yield f"eigenproblem {order}", lambda a=a: fastwhiten.symmetric_eigh(a)  # type: ignore[misc]


def serve() -> None:
    """Time a case for every line of the input: a worker."""
    functions = [function for _, function in cases()]
    for line in sys.stdin:
        function, times = functions[int(line)], list[float]()
        until = time.perf_counter() + SECONDS
        while not times or time.perf_counter() < until:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def main() -> None:
    """Print the table."""
    from . import machine

    workers = []
    for library in ("0", "1"):
        environment = {**os.environ, "FASTWHITEN_CPU_LIBRARY": library}
        command = [sys.executable, "-m", "benchmarks.choices", "serve"]
        workers.append(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )

    def ask(worker: subprocess.Popen[str], case: int) -> float:
        assert worker.stdin is not None and worker.stdout is not None
        print(case, file=worker.stdin, flush=True)
        return float(worker.stdout.readline())

    facts = machine.facts()
    print(f"{facts['processor']}, {facts['isa']}, {facts['threads']} threads\n")
    print("| case | ours, ms | library's, ms | ratio |\n| --- | --- | --- | --- |")
    for case, (name, _) in enumerate(cases()):
        rounds = [[ask(worker, case) for worker in workers] for _ in range(ROUNDS)]
        ours, library = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
        print(f"| {name} | {ours:.3f} | {library:.3f} | {library / ours:.2f} |", flush=True)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
