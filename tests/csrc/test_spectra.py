"""Whole passes of the emulated CUDA kernels on spectra that break whitening elsewhere.

Value and gradient against float64 by a route without eigenvectors, and no worse than plain PyTorch
in the same dtype. Where eigenvalues coincide PCA has no gradient: there the kernels are held to
what the package defines, whatever basis the eigensolver chose.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.backends.test_stages_apply import backward_apply_plainly, reduce_plainly
from tests.csrc.emulated_stages import EmulatedStages
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64

pytestmark = pytest.mark.emulated

KINDS = {"zca": reference.ZCA, "pca": reference.PCA, "cholesky": reference.CHOLESKY}
SIZES = {  # name: (M, D), by what factorises the matrix
    "warp": (64, 12),
    "one launch": (64, 40),  # the whole pass is one kernel, but for Cholesky
    "block": (520, 40),  # too many rows for that
    "one array": (128, 70),  # of shared memory, for the matrix and its eigenvectors
}
SPECTRA = {
    **spectra.DEGENERATE,
    **{f"condition 1e{n}": partial(spectra.conditioned, condition=10.0**n) for n in (2, 4, 8)},
    "large mean": spectra.large_mean,
}
# Eigenvalues that are apart, so that PCA has one result and a gradient; the smallest of condition
# 1e8 are apart in float64 alone, EPS being what they are added to.
APART = {
    torch.float32: ("constant", "condition 1e2", "condition 1e4", "large mean"),
    torch.float64: ("condition 1e8",),
}
EPS = 1e-3
K, WHY = 4.0, "another eigensolver, another order of sums"
# In float64 the truth is as uncertain as the result: by the condition number, 1 / EPS.
SCALE = {torch.float32: 8.0, torch.float64: 1e3}
CASES = [
    *((name, kind, size, torch.float32) for name in SPECTRA for kind in KINDS for size in SIZES),
    *(
        (name, kind, size, torch.float64)
        for name in ("white", "duplicated", "condition 1e8")
        for kind in KINDS
        for size in ("warp", "one launch")
    ),
]
Pass = tuple[Tensor, ...]


def problem(name: str, size: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows of a spectrum and a gradient of the output, ``[M, D]`` each."""
    x = SPECTRA[name](*SIZES[size])
    grad = torch.randn(x.shape, dtype=torch.float64, generator=spectra.generator(9))
    return x.to(dtype), grad.to(dtype)


def both_passes(stages, x: Tensor, grad: Tensor, kind: str, groups: int = 1) -> tuple[Pass, Pass]:
    """Return what ``whiten_forward`` and ``whiten_backward`` return."""
    code = KINDS[kind]
    forward = stages.whiten_forward(
        x, None, None, None, None, groups, 1.0, EPS, code, False, reference.NO_SHRINKAGE, 0.0
    )
    _, mean, _, *factors, _ = forward
    backward = stages.whiten_backward(grad, x, mean, *factors, None, None, None, 1.0, code)
    return forward, backward


@pytest.mark.parametrize(
    ("name", "kind", "size", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_spectra(name: str, kind: str, size: str, dtype: torch.dtype) -> None:
    x, grad = problem(name, size, dtype)
    forward, backward = both_passes(EmulatedStages(), x, grad, kind)
    if kind == "pca" and name not in APART[dtype]:
        check_whitening(x, forward)
        check_tie_policy(x, grad, forward, backward)
        return
    whiten = partial(plain.value_and_grad, plain.whiten, kind=kind, eps=EPS, route="iteration")
    truth = whiten(x.double(), grad.double())
    # In reverse order: in float64 the yardstick would otherwise be the truth itself.
    yardstick = [value.flip(0) for value in whiten(x.flip(0), grad.flip(0))]
    for value, ref, same in zip((forward[0], backward[0]), truth, yardstick, strict=True):
        assert_close_to_fp64(value, ref, same, K, WHY, SCALE[dtype])


def check_whitening(x: Tensor, forward: Pass) -> None:
    """Check that the output is ``x`` centred times ``W``, with ``W^T (S + eps I) W = I``."""
    y, mean, _, values, basis, matrix, _ = forward
    rows, eye = x.double(), torch.eye(x.shape[1], dtype=torch.float64)
    centered = rows - rows.mean(0)
    total = centered.T @ centered / len(rows) + EPS * eye
    same = plain.covariance(x, torch.full((len(x),), 1 / len(x), dtype=x.dtype))[1]
    theirs = plain.whitening_matrix(same, "pca", EPS, "eigh")
    whitened = [(w.double().T @ total @ w.double()).to(x.dtype) for w in (matrix[0], theirs)]
    size = x.shape[1] * SCALE[x.dtype]
    assert_close_to_fp64(whitened[0], eye, whitened[1], K, WHY, size)
    assert_close_to_fp64(y, centered @ matrix[0].double(), (x - mean) @ matrix[0], K, WHY, 8.0)
    scaled = basis[0].double() / values[0].double().sqrt()
    assert_close_to_fp64(matrix[0], scaled, scaled.to(x.dtype), K, WHY)
    assert (values.diff() >= 0).all()


def check_tie_policy(x: Tensor, grad: Tensor, forward: Pass, backward: Pass) -> None:
    """Check PCA's gradient, given its eigensystem: the symmetric part within tied blocks.

    ``R_ij = w_ij F_ij + (1 - w_ij) F_ji`` with ``F = W^T Xc^T G`` and ``w_ij = l_i / (l_i - l_j)``,
    or 1/2 where ``|l_i - l_j| <= 64 D epsilon max(l_i, l_j)``.
    """
    _, mean, _, values, _, matrix, _ = forward
    gap = values[0].unsqueeze(1) - values[0]
    largest = torch.maximum(values[0].unsqueeze(1), values[0].unsqueeze(0))
    tied = gap.abs() <= 64 * x.shape[1] * torch.finfo(x.dtype).eps * largest
    assert (tied.sum() > x.shape[1]).item(), "no two eigenvalues are tied: this case tests nothing"

    def gradient(t: torch.dtype) -> Tensor:
        rows, grads, m, v = (value.to(t) for value in (x, grad, mean, matrix))
        grad_sum, cross = reduce_plainly(rows, grads, m, 1)
        f, rising = v[0].T @ cross[0], values[0].to(t)
        w = torch.where(tied, 0.5, rising.unsqueeze(1) / (rising.unsqueeze(1) - rising))
        inner = v[0] @ (w * f + (1 - w) * f.T) @ v[0].T
        return backward_apply_plainly(rows, grads, m, grad_sum, v, inner.unsqueeze(0), None, None)

    assert_close_to_fp64(
        backward[0], gradient(torch.float64), gradient(x.dtype), K, WHY, SCALE[x.dtype]
    )


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_one_bad_number_spoils_its_group_alone(size: str, kind: str, bad: float) -> None:
    """Both passes; the other groups keep every bit, each with a spectrum of its own."""
    shape = SIZES[size]
    names = ("tied", "condition 1e2", "duplicated")
    x = torch.cat([SPECTRA[name](*shape) for name in names], 1).float()
    grad = torch.randn(x.shape, generator=spectra.generator(9))
    clean = both_passes(EmulatedStages(), x, grad, kind, 3)
    x[3, shape[1] + 5] = bad
    broken = both_passes(EmulatedStages(), x, grad, kind, 3)
    for before, after in zip(clean, broken, strict=True):
        before, after = (v[0].unflatten(1, (3, -1)).transpose(0, 1) for v in (before, after))
        assert after[1].isnan().all()
        assert before.isfinite().all()
        assert torch.equal(after[::2], before[::2])
