"""Every CUDA and Triton kernel once, on small inputs: tools/gpu_check.sh runs it in sanitizers."""

from __future__ import annotations

import os

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


def main() -> None:
    """Run the cases on every backend that serves the device."""
    missing = triton.unserved(DEVICE)
    for backend in ("native", "triton"):
        if backend == "triton" and missing is not None:
            print(f"triton: not run: {missing}")
            continue
        run(backend)
        print(f"{backend}: every case finite")


def run(backend: str) -> None:
    """Forward and backward of every kind and dtype."""
    torch.manual_seed(0)
    for shape, groups in SHAPES:
        for kind in ("zca", "pca", "cholesky"):
            for dtype in (torch.float32, torch.float64, torch.float16):
                x = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
                y = fastwhiten.whiten(x, kind=kind, groups=groups, backend=backend)
                y.backward(torch.randn_like(y))
                assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    for shrinkage in (0.2, "oas", "ledoit-wolf"):
        options = {"batch_weight": 0.5, "shrinkage": shrinkage, "affine": True, "backend": backend}
        layer = ChannelWhitening(24, groups=2, **options).to(DEVICE)  # type: ignore[arg-type]
        x = torch.randn(80, 24, device=DEVICE, requires_grad=True)
        layer(x).pow(3).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
