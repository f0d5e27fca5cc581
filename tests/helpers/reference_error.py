"""The rule of comparison: no worse than plain PyTorch in the same dtype, both against float64."""

import torch
from torch import Tensor

# What the last few operations round whatever the algorithm: the output itself (half an epsilon)
# and the subtraction, product and affine map in front of it. Errors are relative, in norm.
FLOOR = 4.0
# In float64 the truth has rounding errors of its own, of a route with more operations.
FLOOR_FLOAT64 = 16.0


def relative_error(value: Tensor, ref64: Tensor) -> float:
    """Return ``|value - ref64| / |ref64|`` in the Frobenius norm; infinity for a NaN or Inf."""
    assert ref64.dtype == torch.float64
    assert value.shape == ref64.shape, f"shape {list(value.shape)}, expected {list(ref64.shape)}"
    assert torch.isfinite(ref64).all(), "the float64 reference is not finite: no comparison"
    norm = ref64.norm()
    assert norm > 0, "the float64 reference is zero: a relative error does not exist"
    error = float((value.double() - ref64).norm() / norm)
    return error if error == error else float("inf")


def assert_close_to_fp64(
    ours: Tensor,
    ref64: Tensor,
    plain_same_dtype: Tensor,
    k: float,
    why: str,
    scale: float = 1.0,
) -> None:
    """Assert ``error(ours) <= k * error(plain) + floor * scale * epsilon``.

    Args:
        ours: result under test.
        ref64: the same in float64, by an independent route.
        plain_same_dtype: the same by plain PyTorch operations in the dtype of ``ours``.
        k: how much worse than plain PyTorch is accepted.
        why: the reason for ``k``, shown on failure.
        scale: size of the terms that were added up, relative to the result (cancellation).
    """
    assert ours.dtype == plain_same_dtype.dtype, f"{ours.dtype}, expected {plain_same_dtype.dtype}"
    plain = relative_error(plain_same_dtype, ref64)
    assert plain < 1.0, f"plain PyTorch's error is {plain}: a bound made of it proves nothing"
    floor = FLOOR_FLOAT64 if ours.dtype == torch.float64 else FLOOR
    bound = k * plain + floor * scale * torch.finfo(ours.dtype).eps
    error = relative_error(ours, ref64)
    assert error <= bound, (
        f"error {error:.3e} > bound {bound:.3e} = {k} * {plain:.3e} + floor ({why})"
    )
