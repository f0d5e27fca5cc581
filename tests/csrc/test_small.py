"""The kernels that do a whole forward, or a whole backward, in one launch, emulated."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc.emulated_stages import EmulatedStages
from tests.helpers import spectra
from tests.helpers.reference_error import assert_close_to_fp64

pytestmark = pytest.mark.emulated

KINDS = {"zca": reference.ZCA, "pca": reference.PCA}
SHAPES = {  # name: (shape of x, groups)
    "headline": ((128, 64), 1),
    "odd, groups": ((70, 99), 3),
    "fewest channels": ((40, 34), 2),
    "fewer rows than channels": ((20, 64), 1),
    "two rows": ((2, 33), 1),
    "planes": ((5, 96, 14), 2),
}
DEFICIENT = ("two rows", "fewer rows than channels")
# Our eigensolver and sums against PyTorch's in the same dtype; the eigenvectors' errors differ.
K, WHY = 4.0, "another eigensolver, another order of sums"
# In float64 the truth's own errors are of the same size; eigenvectors magnify them by 1 / gap.
SCALE = {torch.float32: 8.0, torch.float64: 256.0}


@dataclass(frozen=True)
class Counted(EmulatedStages):
    """Emulated stages that remember how many launches each took."""

    launches: list[int] = field(default_factory=list)

    def _run(self, name, call, **more):
        out = super()._run(name, call, **more)
        self.launches.append(out["out_launches"].item())
        return out


def batch(name: str, seed: int = 0) -> tuple[Tensor, int]:
    shape, groups = SHAPES[name]
    length = shape[2] if len(shape) == 3 else 1
    x = spectra.random(shape[0] * length, shape[1], seed)
    if length > 1:
        x = x.reshape(shape[0], length, shape[1]).transpose(1, 2).contiguous()
    return x, groups


def options(x: Tensor, groups: int, every: bool, dtype: torch.dtype) -> dict[str, object]:
    """Return gamma, beta, weights, a running covariance and shrinkage, or none of them."""
    if not every:
        return {"gamma": None, "beta": None, "p": None, "running": None, "weight": 1.0, "rho": None}
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    size, t = channels // groups, {"dtype": torch.float64, "generator": spectra.generator(7)}
    p = torch.rand(rows, **t) + 0.1
    if rows > 3:
        p[1] = 0.0
    noise = torch.randn(groups, 2 * size, size, **t)
    return {
        "gamma": (torch.rand(channels, **t) + 0.5).to(dtype),
        "beta": torch.randn(channels, **t).to(dtype),
        "p": (p / p.sum()).to(dtype),
        "running": (noise.mT @ noise / (2 * size)).to(dtype),
        "weight": 0.3,
        "rho": 0.2,
    }


def forward(
    stages, x: Tensor, groups: int, o: dict[str, object], kind: int, method: int | None = None
):
    """Run a forward; ``method`` None: the options' own intensity, or no shrinkage."""
    shrink = (reference.NO_SHRINKAGE, 0.0) if o["rho"] is None else (reference.FIXED, o["rho"])
    if method is not None:
        shrink = (method, o["rho"] or 0.0)
    return stages.whiten_forward(
        x,
        o["gamma"],
        o["beta"],
        o["p"],
        o["running"],
        groups,
        o["weight"],
        1e-3,
        kind,
        False,
        *shrink,
    )


def wide(o: dict[str, object]) -> dict[str, object]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in o.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_forward_in_one_launch(name: str, kind: str, every: bool, dtype: torch.dtype) -> None:
    x, groups = batch(name)
    x, o = x.to(dtype), options(x, groups, every, dtype)
    stages = Counted()
    ours = forward(stages, x, groups, o, KINDS[kind])
    assert stages.launches == [1]
    truth = forward(reference, x.double(), groups, wide(o), KINDS[kind])
    plain = forward(reference, x, groups, o, KINDS[kind])
    for at, value in enumerate(ours):
        if value.numel() == 0 or at == 4:  # basis: where eigenvalues are close, another is as good
            continue
        if kind == "pca" and at in (0, 5) and name in DEFICIENT:
            continue  # the null space has no basis of its own
        assert_close_to_fp64(value, truth[at], plain[at], K, WHY, scale=SCALE[dtype])
    basis, values = ours[4].double(), ours[3].double()
    rho = o["rho"] or 0.0
    blended = reference.blend(ours[2].double(), wide(o)["running"], o["weight"])
    trace = blended.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    size = basis.shape[-1]
    s = (1 - rho) * blended + (rho * trace / size + 1e-3) * torch.eye(size, dtype=torch.float64)
    error = (s @ basis - basis * values.unsqueeze(1)).norm() / s.norm()
    assert error < 8 * size * torch.finfo(dtype).eps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("kind", [*KINDS, "cholesky"])
@pytest.mark.parametrize("name", SHAPES)
def test_backward_in_one_launch(name: str, kind: str, every: bool, dtype: torch.dtype) -> None:
    x, groups = batch(name)
    grad = batch(name, seed=5)[0]
    if (name, dtype) == ("headline", torch.float64):
        x, grad = x[:113], grad[:113]  # as many rows as fit beside three matrices
    code = {**KINDS, "cholesky": reference.CHOLESKY}[kind]
    o = wide(options(x, groups, every, dtype))
    _, mean, _, *factors, rho = forward(reference, x.to(dtype).double(), groups, o, code)
    if kind == "pca" and name in DEFICIENT:
        # PCA has no gradient through a null space. A backward takes its factors as they come, so
        # these shapes are tried with eigenvalues that are apart.
        factors[0] = torch.linspace(1, 2, factors[0].shape[1]).double().expand_as(factors[0])
        factors[0] = factors[0].contiguous()
        factors[2] = factors[1] * factors[0].rsqrt().unsqueeze(-2)
    given = [x, mean, *factors, o["gamma"], rho if every else None, o["p"]]
    given = [None if v is None else v.to(dtype) for v in given]
    stages = Counted()
    ours = stages.whiten_backward(grad.to(dtype), *given, o["weight"], code)
    assert stages.launches == [1]
    double = [None if v is None else v.double() for v in given]
    truth = reference.whiten_backward(grad.to(dtype).double(), *double, o["weight"], code)
    plain = reference.whiten_backward(grad.to(dtype), *given, o["weight"], code)
    for value, ref, yardstick in zip(ours, truth, plain, strict=True):
        assert_close_to_fp64(value, ref, yardstick, K, WHY, scale=SCALE[dtype])


@pytest.mark.parametrize("name", ["odd, groups", "planes"])
@pytest.mark.parametrize("order", ["reversed", pytest.param("random", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "sanitize", [False, pytest.param(True, marks=pytest.mark.full)], ids=["plain", "sanitized"]
)
def test_same_bits_whatever_the_order_of_threads(name: str, order: str, sanitize: bool) -> None:
    x, groups = batch(name)
    x, o = x.float(), options(x, groups, True, torch.float32)
    first = forward(EmulatedStages(), x, groups, o, reference.ZCA)
    again = forward(EmulatedStages(order, sanitize), x, groups, o, reference.ZCA)
    _, mean, _, *factors, rho = first
    other = (x, groups, o, reference.CHOLESKY, reference.LEDOIT_WOLF)
    first += forward(EmulatedStages(), *other)
    again += forward(EmulatedStages(order, sanitize), *other)
    rest = (batch(name, 5)[0].float(), x, mean, *factors, o["gamma"], rho, o["p"], 0.3, 0)
    first += EmulatedStages().whiten_backward(*rest)
    again += EmulatedStages(order, sanitize).whiten_backward(*rest)
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype: torch.dtype) -> None:
    x, groups = batch("odd, groups")
    x, o = x.to(dtype), options(x, groups, False, torch.float32)
    stages = Counted()
    y, mean, _, values, u, w, _ = forward(stages, x, groups, o, reference.ZCA)
    truth = forward(reference, x.double(), groups, wide(o), reference.ZCA)
    assert y.dtype == dtype
    assert (y.double() - truth[0]).abs().max() <= torch.finfo(dtype).eps * truth[0].abs().max()
    dx = stages.whiten_backward(x, x, mean, values, u, w, None, None, None, 1.0, reference.ZCA)[0]
    exact = reference.whiten_backward(
        x.double(), x.double(), *truth[1:2], *truth[3:6], None, None, None, 1.0, reference.ZCA
    )[0]
    assert (dx.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert stages.launches == [1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_group_that_is_not_finite_is_nan_alone(bad: float) -> None:
    x, groups = batch("odd, groups")
    x, o = x.float(), options(x, groups, False, torch.float32)
    clean = forward(EmulatedStages(), x, groups, o, reference.ZCA)
    x[3, 40] = bad  # group 1 of 3
    y, _, _, *factors, _ = forward(EmulatedStages(), x, groups, o, reference.ZCA)
    y, before = (reference.to_groups(v, groups, torch.float32) for v in (y, clean[0]))
    assert y[1].isnan().all()
    assert all(f[1].isnan().all() for f in factors)
    assert torch.equal(y[::2], before[::2])


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_a_row_without_weight_may_lie_anywhere(order: str) -> None:
    x = spectra.random(100, 40).float()
    p = torch.linspace(1.0, 2.0, 100)
    x[:40], p[:40] = 1e6, 0.0  # no lane of the first warp's first step has the heaviest row
    o = options(x, 1, False, torch.float32) | {"p": p / p.sum()}
    truth = forward(reference, x.double(), 1, wide(o), reference.ZCA)
    ours = forward(Counted(order), x, 1, o, reference.ZCA)
    for at in (0, 1, 2):
        close = ours[at][40:] if at == 0 else ours[at], truth[at][40:] if at == 0 else truth[at]
        torch.testing.assert_close(close[0].double(), close[1], rtol=1e-4, atol=1e-4)


def test_a_large_mean_costs_nothing() -> None:
    x = spectra.large_mean(128, 40).float()
    o = options(x, 1, False, torch.float32)
    truth = forward(reference, x.double(), 1, o, reference.ZCA)
    ours = forward(EmulatedStages(), x, 1, o, reference.ZCA)
    plain = forward(reference, x, 1, o, reference.ZCA)
    for at in (0, 1, 2):
        assert_close_to_fp64(ours[at], truth[at], plain[at], K, WHY, scale=8.0)


@pytest.mark.parametrize(
    ("shape", "groups", "kind"),
    [
        ((513, 20), 1, reference.ZCA),  # too many rows for a block
        ((513, 20), 1, reference.CHOLESKY),
        ((60, 8), 1, reference.PCA),  # a warp has an eigensolver of its own
        ((3, 265), 265, reference.CHOLESKY),  # narrow groups, more than run at once
        ((3, 66), 1, reference.CHOLESKY),  # more channels than a block's tiles have
    ],
)
def test_other_cases_take_the_stages(shape: tuple[int, int], groups: int, kind: int) -> None:
    x, stages = spectra.random(*shape), Counted()
    stages.whiten_forward(x, None, None, None, None, groups, 1.0, 1e-3, kind, False, 0, 0.0)
    assert stages.launches[0] > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("name", ["odd, groups", "fewest channels"])
def test_forward_begins_from_the_last_eigenvectors(name: str, dtype: torch.dtype) -> None:
    """Another path to the same matrix; what is not orthogonal changes no bit."""
    x, groups = batch(name)
    x, o = x.to(dtype), options(x, groups, True, dtype)
    shrink = (reference.FIXED, o["rho"])
    common = (x, o["gamma"], o["beta"], o["p"], o["running"], groups, o["weight"], 1e-3, 0, False)
    stages = Counted()
    cold = stages.whiten_forward(*common, *shrink)
    near = torch.linalg.eigh(o["running"])[1].contiguous()
    warm = stages.whiten_forward(*common, *shrink, near)
    assert stages.launches == [1, 1]
    truth = reference.whiten_forward(
        *(v.double() if isinstance(v, Tensor) else v for v in common), *shrink
    )
    for at in (0, 3, 5):  # y, eigenvalues, W
        assert not torch.equal(warm[at], cold[at])
        assert_close_to_fp64(warm[at], truth[at], cold[at], K, WHY, scale=SCALE[dtype])
    spoilt = stages.whiten_forward(*common, *shrink, near * 1.001)
    for value, expected in zip(spoilt, cold, strict=True):
        assert torch.equal(value, expected)
