"""What a kernel takes for granted, checked: a wrong pointer would be read, not reported."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import INTERPRETED
from .factor import CHOLESKY, PCA, ZCA
from .intensity import FIXED, LEDOIT_WOLF, OAS

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(
    op: str, name: str, t: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> None:
    """Raise ValueError unless ``t`` is None or contiguous, of that shape, dtype, and device."""
    if t is None:
        return
    if t.shape != shape or t.dtype != dtype or t.device != like.device or not t.is_contiguous():
        raise ValueError(
            f"{op}: expected {name} contiguous {list(shape)} {dtype} on {like.device}, got "
            f"{list(t.shape)} {t.dtype} on {t.device} with strides {list(t.stride())}"
        )


def check_input(op: str, x: Tensor, groups: int) -> None:
    """Raise unless ``x`` is rows ``[M, C]`` or planes ``[N, C, L]`` that a kernel can run on."""
    if x.dim() not in (2, 3) or not x.is_contiguous() or x.dtype not in FLOATING:
        raise ValueError(
            f"{op}: expected contiguous rows [M, C] or planes [N, C, L] of a floating dtype, got "
            f"{list(x.shape)} {x.dtype} with strides {list(x.stride())}"
        )
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{op}: expected groups to divide {x.shape[1]} channels, got {groups}")
    check_device(op, x)


def check_square(op: str, name: str, a: Tensor) -> None:
    """Raise unless ``a`` is ``[B, D, D]`` float32 or float64 that a kernel can run on."""
    square = a.dim() == 3 and a.shape[1] == a.shape[2] and a.is_contiguous()
    if not square or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{op}: expected {name} contiguous [B, D, D] float32 or float64, got {list(a.shape)} "
            f"{a.dtype} with strides {list(a.stride())}"
        )
    check_device(op, a)


def check_kind(op: str, kind: int) -> None:
    """Raise unless ``kind`` is one of the three."""
    if kind not in (ZCA, PCA, CHOLESKY):
        raise ValueError(f"{op}: expected kind 0 (ZCA), 1 (PCA) or 2 (Cholesky), got {kind}")


def check_intensity(
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    running_covariance: Tensor | None,
    row_weight: Tensor | None,
    method: int,
) -> None:
    """Check the arguments of the stage ``intensity``."""
    op, dtype, channels = "intensity", mean.dtype, x.shape[1]
    check_square(op, "covariance", covariance)
    groups = covariance.shape[0]
    check_input(op, x, groups)
    size = channels // groups
    check(op, "mean", mean, (channels,), dtype, x)
    for name, t in (("covariance", covariance), ("running_covariance", running_covariance)):
        check(op, name, t, (groups, size, size), dtype, x)
    check(op, "row_weight", row_weight, (x.numel() // channels,), dtype, x)
    if not x.numel():
        raise ValueError(f"{op}: expected at least one row, got {list(x.shape)}")
    if method not in (FIXED, OAS, LEDOIT_WOLF):
        raise ValueError(
            f"{op}: expected method 1 (fixed), 2 (OAS) or 3 (Ledoit-Wolf), got {method}"
        )


def check_spectrum(
    op: str,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    row_weight: Tensor | None,
    rho: Tensor | None,
    like: Tensor,
    sizes: tuple[int, int],
) -> None:
    """Check what the two last stages of the sample side share; ``sizes`` is ``(G, M)``."""
    groups, rows = sizes
    check(op, "eigenvalues", eigenvalues, (groups, rows), like.dtype, like)
    check(op, "eigenvectors", eigenvectors, (groups, rows, rows), like.dtype, like)
    check(op, "row_weight", row_weight, (rows,), like.dtype, like)
    check(op, "rho", rho, (groups,), like.dtype, like)


def check_device(op: str, x: Tensor) -> None:
    """Raise for tensors of a device that the kernels were not made for."""
    expected = "cpu" if INTERPRETED else "cuda"
    if x.device.type != expected:
        how = "are interpreted on the CPU (TRITON_INTERPRET=1)" if INTERPRETED else "run on a GPU"
        raise ValueError(f"{op}: the Triton kernels {how}, got a tensor on {x.device}")
