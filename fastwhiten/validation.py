"""Checks of what users pass, before any kernel.

Each error says what was expected, what came and what to do.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import shrinkage
from .backends import reference

Kind = Literal["zca", "pca", "cholesky"]
Running = Literal["covariance", "matrix"]
Backend = Literal["auto", "native", "triton", "reference"]
Shrinkage = Literal["oas", "ledoit-wolf"] | float | None

KINDS = {"zca": reference.ZCA, "pca": reference.PCA, "cholesky": reference.CHOLESKY}
WHITENER_KINDS = (*KINDS, "zca-cor", "pca-cor")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_kind(caller: str, kind: str) -> int:
    """Return the stage code of a kind.

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"{caller}: expected kind to be one of {list(KINDS)}, got {kind!r}")
    return KINDS[kind]


def check_eps(caller: str, eps: float) -> float:
    """Return eps as a float.

    Raises:
        ValueError: eps is not a finite number above zero.
    """
    if not isinstance(eps, (int, float)) or not 0.0 < eps < math.inf:
        raise ValueError(
            f"{caller}: expected eps to be a finite number > 0 (it keeps rank-deficient batches "
            f"invertible), got {eps!r}; 1e-3 is the default"
        )
    return float(eps)


def check_power(caller: str, p: float, eps: float) -> tuple[float, float]:
    """Return the exponent and the eps of a matrix power as floats.

    Raises:
        TypeError: the exponent is no number.
        ValueError: not finite, or eps below zero.
    """
    if not isinstance(p, (int, float)) or isinstance(p, bool):
        raise TypeError(f"{caller}: expected p to be a number, got {type(p).__name__}")
    if not math.isfinite(p):
        raise ValueError(f"{caller}: expected p to be finite, got {p!r}")
    return float(p), check_eps_or_zero(caller, eps)


def check_eps_or_zero(caller: str, eps: float) -> float:
    """Return eps as a float.

    Raises:
        ValueError: eps is not a finite number >= 0.
    """
    if not isinstance(eps, (int, float)) or not 0.0 <= eps < math.inf:
        raise ValueError(f"{caller}: expected eps to be a finite number >= 0, got {eps!r}")
    return float(eps)


def check_shrinkage(caller: str, method: str | float | None) -> str | float | None:
    """Return the shrinkage method.

    Raises:
        ValueError: neither None, a known method, nor an intensity in [0, 1].
    """
    if method is None or method in shrinkage.METHODS:
        return method
    if isinstance(method, (int, float)) and not isinstance(method, bool) and 0.0 <= method <= 1.0:
        return float(method)
    raise ValueError(
        f"{caller}: expected shrinkage to be None, one of {list(shrinkage.METHODS)} or an "
        f"intensity in [0, 1], got {method!r}"
    )


def check_batch_weight(caller: str, batch_weight: float) -> float:
    """Return batch_weight as a float.

    Raises:
        ValueError: outside (0, 1].
    """
    if not isinstance(batch_weight, (int, float)) or not 0.0 < batch_weight <= 1.0:
        raise ValueError(f"{caller}: expected batch_weight in (0, 1], got {batch_weight!r}")
    return float(batch_weight)


def check_groups(caller: str, groups: int, channels: int) -> None:
    """Check that ``groups`` divides ``channels``.

    Raises:
        ValueError: groups is not a positive integer that divides the channels.
    """
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"{caller}: expected groups to be a positive integer, got {groups!r}")
    if channels % groups:
        raise ValueError(
            f"{caller}: expected groups to divide the number of channels, "
            f"got {channels} channels in {groups} groups; choose a divisor of {channels}"
        )


def check_statistics_dtype(caller: str, dtype: torch.dtype | None) -> bool:
    """Return whether float64 statistics were asked for.

    Raises:
        ValueError: neither None, float32 nor float64.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"{caller}: expected statistics_dtype to be None, torch.float32 or torch.float64, "
            f"got {dtype}"
        )
    return dtype == torch.float64


def check_channel_dim(caller: str, channel_dim: int) -> None:
    """Check that ``channel_dim`` can be a dimension; whether ``x`` has it is asked when it comes.

    Raises:
        TypeError: not an integer.
    """
    if not isinstance(channel_dim, int) or isinstance(channel_dim, bool):
        raise TypeError(
            f"{caller}: expected channel_dim to be an integer (1 for [N, C, ...], -1 for "
            f"[N, ..., C]), got {channel_dim!r}"
        )


def _shape(channels: int | str, channel_dim: int) -> str:
    """Return the shape that is expected, in words."""
    known = {1: f"[N, {channels}, ...]", -1: f"[N, ..., {channels}]"}
    return known.get(channel_dim, f"[N, ...] with {channels} channels in dimension {channel_dim}")


def check_input(
    caller: str, x: Tensor, groups: int, *, min_rows: int = 2, channel_dim: int = 1
) -> None:
    """Check the tensor to be whitened.

    Args:
        caller: name in front of the message.
        x: expected ``[N, C, ...]``, floating point.
        groups: must divide C.
        min_rows: how many rows ``M = N * spatial`` the statistics need.
        channel_dim: where C is.

    Raises:
        TypeError: not a tensor, or not one of float16, bfloat16, float32, float64.
        ValueError: too few dimensions, no channels, groups that do not divide C, or too few rows.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{caller}: expected x to be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{caller}: expected x of dtype float16, bfloat16, float32 or float64, got {x.dtype}; "
            "convert it with x.float()"
        )
    if channel_dim != 1:
        check_channel_dim(caller, channel_dim)
    missing = x.dim() < 2 or not -x.dim() <= channel_dim < x.dim()
    if missing or x.shape[channel_dim] < 1:
        raise ValueError(
            f"{caller}: expected x of shape {_shape('C', channel_dim)} with at least one channel, "
            f"got {list(x.shape)}; add a batch dimension with x.unsqueeze(0) or "
            "check the order of dimensions"
        )
    channels = x.shape[channel_dim]
    check_groups(caller, groups, channels)
    rows = x.numel() // channels
    if rows < min_rows:
        advice = (
            "skip empty batches"
            if rows == 0
            else "a covariance needs more: use a larger batch, drop_last=True in the DataLoader, "
            "or .eval()"
        )
        raise ValueError(
            f"{caller}: expected x of shape {_shape('C', channel_dim)} with at least {min_rows} "
            f"rows (N times spatial size), got {list(x.shape)}, which has {rows}; {advice}"
        )


def check_sample_weight(
    caller: str, weight: Tensor, x: Tensor, *, may_be_zero: bool = False
) -> None:
    """Check sample weights against the input they belong to.

    Values are looked at only where that costs no synchronisation: on CPU tensors, outside of
    compilation and of ``torch.func`` transforms. Elsewhere a negative or all-zero weight gives NaN
    output. ``may_be_zero`` allows none and all-zero weights: other processes may have others.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong shape or device, requires grad, or values that are negative, not finite
            or all zero.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(
            f"{caller}: expected sample_weight to be a floating-point tensor, got {got}"
        )
    per_position = [x.shape[0], *x.shape[2:]]
    if list(weight.shape) not in ([x.shape[0]], per_position):
        raise ValueError(
            f"{caller}: expected sample_weight of shape [N] = [{x.shape[0]}] or "
            f"[N, ...] = {per_position}, got {list(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(
            f"{caller}: expected sample_weight on the device of x, {x.device}, "
            f"got {weight.device}; move it with sample_weight.to(x.device)"
        )
    if weight.requires_grad:
        raise ValueError(
            f"{caller}: sample_weight requires grad, but gradients with respect to it are not "
            "defined here; pass sample_weight.detach()"
        )
    if torch.compiler.is_compiling() or weight.device.type != "cpu" or _is_transformed(weight):
        return
    if may_be_zero and weight.numel() == 0:
        return
    low, total = float(weight.min()), float(weight.sum())
    if not (low >= 0.0 and (0.0 < total < math.inf or (may_be_zero and total == 0.0))):
        raise ValueError(
            f"{caller}: expected sample_weight with finite values >= 0 that are not all zero, "
            f"got minimum {low} and sum {total}"
        )


def _is_transformed(t: Tensor) -> bool:
    """Return whether ``t`` is wrapped by a torch.func transform.

    If so, its values cannot be read.
    """
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(t))


def check_symmetric(caller: str, a: Tensor, name: str) -> None:
    """Check a batch of square matrices.

    Raises:
        TypeError: not a float32 or float64 tensor.
        ValueError: not of shape ``[..., D, D]`` with D >= 1.
    """
    if not isinstance(a, Tensor) or a.dtype not in (torch.float32, torch.float64):
        got = str(a.dtype) if isinstance(a, Tensor) else type(a).__name__
        raise TypeError(
            f"{caller}: expected {name} to be a float32 or float64 tensor, got {got}; "
            "convert it with .float()"
        )
    if a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 1:
        raise ValueError(
            f"{caller}: expected {name} of shape [..., D, D] with D >= 1, got {list(a.shape)}"
        )


def check_start(caller: str, start: Tensor | None, a: Tensor) -> Tensor | None:
    """Check matrices ``a`` and what an eigensolver may begin from; return that, contiguous.

    Raises:
        TypeError: ``a`` is not a float32 or float64 tensor.
        ValueError: ``a`` is not of shape ``[..., D, D]``, or ``start`` is not like ``a``.
    """
    check_symmetric(caller, a, "a")
    if start is None:
        return None
    if start.shape != a.shape or start.dtype != a.dtype or start.device != a.device:
        raise ValueError(
            f"{caller}: expected start like a, {list(a.shape)} {a.dtype} on {a.device}, got "
            f"{list(start.shape)} {start.dtype} on {start.device}"
        )
    return start.detach().contiguous()


def check_whitener(
    kind: str,
    n_components: int | None,
    eps: float,
    shrinkage: str | float | None,
    ddof: int,
    chunk_rows: int | None,
    backend: str,
) -> None:
    """Check the parameters of Whitener; the backend is checked where it is chosen.

    Raises:
        ValueError: a parameter outside its range, or two that do not go together.
    """
    caller = "Whitener"
    if kind not in WHITENER_KINDS:
        raise ValueError(
            f"{caller}: expected kind to be one of {list(WHITENER_KINDS)}, got {kind!r}"
        )
    check_eps_or_zero(caller, eps)
    check_shrinkage(caller, shrinkage)
    for name, value in (("n_components", n_components), ("chunk_rows", chunk_rows)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(
                f"{caller}: expected {name} to be a positive integer or None, got {value!r}"
            )
    if ddof not in (0, 1):
        raise ValueError(f"{caller}: expected ddof to be 0 or 1, got {ddof!r}")
    if kind == "cholesky" and n_components is not None:
        raise ValueError(
            f"{caller}: kind='cholesky' orders columns, not directions, and has no n_components; "
            "use kind='pca'"
        )
    if shrinkage == "ledoit-wolf" and kind.endswith("-cor"):
        raise ValueError(
            f"{caller}: the Ledoit-Wolf intensity of correlations needs a second pass over the "
            f"rows; with kind={kind!r} use shrinkage='oas' or a number"
        )


def check_layer(
    num_features: int,
    groups: int,
    kind: str,
    momentum: float | None,
    track_running_stats: bool,
    running: str,
    batch_weight: float,
    channel_dim: int,
) -> None:
    """Check the options of ChannelWhitening that are its own.

    Raises:
        TypeError: ``channel_dim`` is not an integer.
        ValueError: an option outside its range, or two that do not go together.
    """
    caller = "ChannelWhitening"
    check_channel_dim(caller, channel_dim)
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"{caller}: expected num_features to be a positive integer, got {num_features!r}"
        )
    check_groups(caller, groups, num_features)
    if momentum is not None and not 0.0 <= momentum <= 1.0:
        raise ValueError(f"{caller}: expected momentum in [0, 1] or None, got {momentum!r}")
    if running not in ("covariance", "matrix"):
        raise ValueError(
            f"{caller}: expected running to be 'covariance' or 'matrix', got {running!r}"
        )
    if running == "matrix" and kind == "pca":
        raise ValueError(
            f"{caller}: running='matrix' averages whitening matrices over batches, and PCA's "
            "rows change order and sign from batch to batch; use running='covariance'"
        )
    if batch_weight != 1.0 and not (track_running_stats and running == "covariance"):
        raise ValueError(
            f"{caller}: batch_weight={batch_weight!r} blends with the running covariance; "
            "it needs track_running_stats=True and running='covariance'"
        )


def check_layer_input(
    x: Tensor,
    num_features: int,
    groups: int,
    buffer: Tensor | None,
    *,
    min_rows: int,
    channel_dim: int,
) -> None:
    """Check the input of ChannelWhitening.

    Args:
        x: expected ``[N, num_features, ...]``.
        num_features: C of the layer.
        groups: its number of groups.
        buffer: one of its buffers, on its device, if it has any.
        min_rows: as in :func:`check_input`.
        channel_dim: where the channels are.

    Raises:
        TypeError, ValueError: as :func:`check_input`; another number of channels or device.
    """
    caller = "ChannelWhitening"
    if isinstance(x, Tensor) and x.dim() >= 2 and -x.dim() <= channel_dim < x.dim():
        found = x.shape[channel_dim]
        if found != num_features:
            advice = f"construct the layer with num_features={found}"
            for other in (-1, 1):
                if x.dim() > 2 and x.shape[other] == num_features:
                    advice = f"construct the layer with channel_dim={other}"
            raise ValueError(
                f"{caller}: expected x of shape {_shape(num_features, channel_dim)}, got "
                f"{list(x.shape)}; {advice}"
            )
    check_input(caller, x, groups, min_rows=min_rows, channel_dim=channel_dim)
    if buffer is not None and buffer.device != x.device:
        raise ValueError(
            f"{caller}: expected x on the device of the layer, {buffer.device}, got {x.device}; "
            "move one of them with .to(device)"
        )
