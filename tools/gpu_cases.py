"""Every CUDA and Triton kernel on small inputs, for sanitizers: python tools/gpu_cases.py BACKEND.

compute-sanitizer (tools/gpu_check.sh) makes kernels a hundred times slower, so the cases are few:
every path of the eigensolvers, of the layouts, of the sample side and of the options once.
"""

from __future__ import annotations

import os
import sys

import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from fastwhiten.backends import triton

DEVICE = torch.device(os.environ.get("FASTWHITEN_TEST_DEVICE", "cuda"))
# (shape, groups): a warp's eigensolver, a block's, one on the Cholesky factor; narrow groups, maps,
# tiles of channels, the sample side
SHAPES = [
    ((70, 12), 3),
    ((150, 48), 1),
    ((140, 100), 1),
    ((3, 24, 5, 7), 2),
    ((20, 70), 2),
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def main(arguments: list[str]) -> None:
    """Run the cases on a backend."""
    if len(arguments) != 1 or arguments[0] not in ("native", "triton"):
        sys.exit(f"gpu_cases: expected one argument, native or triton, got {arguments}")
    backend = arguments[0]
    reason = triton.unserved(DEVICE) if backend == "triton" else None
    if reason is not None:
        sys.exit(f"gpu_cases: {backend}: {reason}")
    torch.manual_seed(0)
    whole_passes(backend)
    layers(backend)
    eigensystems(backend)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    print(f"{backend}: every case finite")


def finite(name: str, *tensors: torch.Tensor | None) -> None:
    """End the program where a result is missing, NaN or infinite."""
    if not all(t is not None and bool(t.isfinite().all()) for t in tensors):
        sys.exit(f"gpu_cases: {name}: expected finite results")


def whole_passes(backend: str) -> None:
    """Forward and backward of every kind; every dtype once per shape, weights in one of them."""
    for shape, groups in SHAPES:
        kinds = [("zca", dtype) for dtype in DTYPES]
        kinds += [("pca", torch.float32), ("cholesky", torch.float32), ("cholesky", torch.float64)]
        for kind, dtype in kinds:
            x = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
            weight = torch.rand(shape[0], device=DEVICE) + 0.5 if dtype == torch.float32 else None
            y = fastwhiten.whiten(
                x, kind=kind, groups=groups, sample_weight=weight, backend=backend
            )
            y.backward(torch.randn_like(y))
            finite(f"{kind} {list(shape)} {dtype}", y, x.grad)


def layers(backend: str) -> None:
    """The layer with blending, whose second step begins from the first one's eigenvectors."""
    for shrinkage in (0.2, "oas", "ledoit-wolf"):
        options = {"batch_weight": 0.5, "shrinkage": shrinkage, "affine": True, "backend": backend}
        layer = ChannelWhitening(24, groups=2, **options).to(DEVICE)  # type: ignore[arg-type]
        for _ in range(2):
            x = torch.randn(80, 24, device=DEVICE, requires_grad=True)
            y = layer(x)
            y.pow(3).sum().backward()
            finite(f"layer with shrinkage {shrinkage}", y, x.grad, *layer.buffers())


def eigensystems(backend: str) -> None:
    """The eigensolvers by themselves, cold and from a start, of every size class."""
    for size in (2, 16, 33, 64, 65, 100):
        rows = torch.randn(2, 2 * size, size, device=DEVICE)
        a = rows.mT @ rows / (2 * size)
        start = fastwhiten.symmetric_eigh(a, backend=backend)[1]
        values, vectors = fastwhiten.symmetric_eigh(a, start=start, backend=backend)
        finite(f"eigensystem of order {size}", values, vectors)


if __name__ == "__main__":
    main(sys.argv[1:])
