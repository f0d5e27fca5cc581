"""The CUDA kernels of every stage, emulated: the tests of the other backends, and more.

The tests of ``tests/backends`` run here on the emulated kernels, once with the threads of every
block in order and again in reversed order under the sanitizers, there every pair of values of two
axes (see ``conftest.py``).
"""

from __future__ import annotations

import pytest
import torch

from fastwhiten import backends
from fastwhiten.backends import reference
from tests.backends.test_stages import (  # noqa: F401 (collected here, with this backend)
    acc,
    doubled,
    test_factor,
    test_factor_clamps_rounding_below_zero,
    test_factor_of_broken_groups,
    test_statistics,
    test_statistics_with_a_large_mean,
)
from tests.backends.test_stages_apply import (  # noqa: F401 (likewise)
    test_apply,
    test_backward_apply,
    test_backward_matrix,
    test_backward_matrix_tie_policy_of_pca,
    test_backward_reduce,
    test_sample_side,
    test_sample_statistics_in_double_precision,
)
from tests.csrc.conftest import AGAIN
from tests.csrc.emulated_stages import EmulatedStages
from tests.helpers import spectra

pytestmark = pytest.mark.emulated

RUNS = {"forward": EmulatedStages(), AGAIN: EmulatedStages("reversed", True)}


@pytest.fixture(params=RUNS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(backends.BACKENDS, "emulated", RUNS[request.param])
    return "emulated"


def batch(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    rows = shape[0] * (shape[2] if len(shape) == 3 else 1)
    x = spectra.random(rows, shape[1], seed)
    if len(shape) == 2:
        return x
    return x.reshape(shape[0], shape[2], shape[1]).transpose(1, 2).contiguous()


def close(ours, expected, dtype: torch.dtype, factor: float) -> None:
    """Compare in norm: ``factor`` roundings of ``dtype``."""
    for value, ref in zip(ours, expected, strict=True):
        if ref.numel() == 0:
            assert value.numel() == 0
            continue
        error = (value.double() - ref.double()).norm() / ref.double().norm()
        assert error <= factor * torch.finfo(dtype).eps, f"{error:.2e}"


# Several chunks of rows and tiles of channels; groups that share a tile; planes.
SHAPES = [((600, 70), 1), ((300, 130), 2), ((150, 60), 4), ((3, 96, 200), 3), ((700, 3), 3)]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", [reference.ZCA, reference.PCA, reference.CHOLESKY])
@pytest.mark.parametrize("options", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_whole_passes(shape, groups, options, kind, run) -> None:
    """A forward and a backward in float64 equal the specification's, every output of them."""
    stages, x = RUNS[run], batch(shape)
    rows, size = x.numel() // x.shape[1], x.shape[1] // groups
    p = gamma = running = None
    weight, shrink = 1.0, (reference.NO_SHRINKAGE, 0.0)
    if options:
        p = torch.linspace(0.0, 1.0, rows, dtype=x.dtype)
        p = p / p.sum()
        gamma = torch.rand(x.shape[1], dtype=x.dtype) + 0.5
        running = torch.eye(size, dtype=x.dtype).expand(groups, -1, -1).contiguous()
        weight, shrink = 0.3, (reference.LEDOIT_WOLF, 0.0)
    arguments = (x, gamma, gamma, p, running, groups, weight, 1e-3, kind, False, *shrink)
    expected = reference.whiten_forward(*arguments)
    ours = stages.whiten_forward(*arguments)
    basis = 4  # its signs are the eigensolver's
    keep = [i for i in range(7) if i != basis and not (kind == reference.PCA and i in (0, 5))]
    # Eigenvalues of 1 to 0.1 and D products per entry: 1e4 roundings are far from a wrong formula.
    close([ours[i] for i in keep], [expected[i] for i in keep], x.dtype, 1e4)

    grad = batch(shape, seed=5)
    rho = expected[6] if options else None
    _, mean, _, *factors, _ = expected
    rest = (mean, *factors, gamma, rho, p, weight, kind)
    close(
        stages.whiten_backward(grad, x, *rest),
        reference.whiten_backward(grad, x, *rest),
        x.dtype,
        1e6 if kind == reference.PCA else 1e4,  # PCA divides by the gaps between eigenvalues
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("options", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize(("rows", "channels", "groups"), [(70, 300, 1), (33, 160, 4), (5, 2100, 1)])
def test_sample_side_in_tiles(rows, channels, groups, options, run) -> None:
    """Several tiles of rows and chunks of channels."""
    stages, x, grad = RUNS[run], spectra.random(rows, channels), spectra.random(rows, channels, 3)
    p = torch.linspace(1.0, 2.0, rows, dtype=x.dtype) if options else None
    p = None if p is None else p / p.sum()
    rho = torch.linspace(0.2, 0.4, groups, dtype=x.dtype) if options else None
    expected = reference.sample_statistics(x, p, groups, False)
    ours = stages.sample_statistics(x, p, groups, False)
    close(ours, expected, x.dtype, 1e3)
    assert torch.equal(ours[2], ours[2].mT)
    eigensystem = reference.eigh(expected[2])
    arguments = (expected[1], *eigensystem, p, rho, 1e-2, x.dtype)
    y, projected = reference.sample_apply(*arguments)
    close(stages.sample_apply(*arguments), (y, projected), x.dtype, 1e4)
    arguments = (grad, projected, *eigensystem, p, rho, 1e-2)
    close(
        [stages.sample_backward(*arguments)], [reference.sample_backward(*arguments)], x.dtype, 1e4
    )


# More channels of a group than half a tile, than a tile; rows that end inside of a tile, of 64 and
# of 256. Vectors move the first four, the others go one number at a time.
WIDE = {
    "rows": ((270, 68), 1),
    "rows, groups": ((270, 80), 2),
    "planes": ((3, 68, 92), 1),
    "planes, groups": ((69, 80, 4), 2),
    "odd planes": ((5, 66, 55), 1),
    "short planes": ((90, 35, 3), 1),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_wide_groups(name: str, dtype: torch.dtype, backend: str) -> None:
    """Every stage that touches rows equals the specification in float64."""
    shape, groups = WIDE[name]
    x, grad = batch(shape).to(dtype), batch(shape, 5).to(dtype)
    p = torch.linspace(1.0, 2.0, x.numel() // x.shape[1], dtype=torch.float64)
    p = (p / p.sum()).to(acc(dtype))
    mean, covariance = reference.statistics(x, p, groups, False)
    matrix, gamma = covariance.tril() + 1, mean.abs() + 0.5
    cases = {
        "statistics": (x, p, groups, False),
        "apply": (x, mean, matrix, gamma, mean),
        "backward_reduce": (x, grad, mean, groups),
        "backward_apply": (x, grad, mean, 100 * gamma, matrix, covariance, gamma, p),
    }
    for stage, arguments in cases.items():
        ours = getattr(backends.get(backend), stage)(*arguments)
        expected = getattr(reference, stage)(*doubled(*arguments))
        pairs = (ours, expected) if isinstance(ours, tuple) else ([ours], [expected])
        # A few hundred terms, rounded to the dtype of the result.
        close(*pairs, pairs[0][0].dtype, 64.0)


@pytest.mark.parametrize("method", [reference.FIXED, reference.OAS, reference.LEDOIT_WOLF])
@pytest.mark.parametrize("options", [False, True], ids=["plain", "weighted, blended"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_intensity(shape, groups, options, method, backend) -> None:
    x = batch(shape)
    rows, size = x.numel() // x.shape[1], x.shape[1] // groups
    p = torch.rand(rows, dtype=x.dtype) if options else None
    p = None if p is None else p / p.sum()
    running = torch.eye(size, dtype=x.dtype).expand(groups, -1, -1).contiguous()
    blending = (running if options else None, p, 0.4 if options else 1.0)
    mean, covariance = reference.statistics(x, p, groups, False)
    arguments = (x, mean, covariance, *blending, method, 0.25)
    # The denominator is a difference of two sums of squares, of about the same size here.
    ours = backends.get(backend).intensity(*arguments)
    close([ours], [reference.intensity(*arguments)], x.dtype, 1e4)


@pytest.mark.parametrize("kind", [reference.ZCA, reference.PCA, reference.CHOLESKY])
def test_backward_matrix_where_blocks_have_little_shared_memory(kind) -> None:
    """It has 99 KiB on compute capability 8.6: each product in float64 is a launch of its own."""
    stages = EmulatedStages(limits=(("shared_limit", 99 << 10),))
    covariance = reference.statistics(batch((90, 80)), None, 2, False)[1]
    rho = torch.tensor([0.2, 0.4], dtype=covariance.dtype)
    factors = reference.factor(covariance, None, rho, 1.0, 1e-2, kind)
    cross = batch((80, 40), 8).reshape(2, 40, 40)
    arguments = (cross, *factors, torch.rand(80, dtype=cross.dtype) + 0.5, rho, 0.3, kind)
    close(
        stages.backward_matrix(*arguments), reference.backward_matrix(*arguments), cross.dtype, 1e6
    )


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_same_bits_whatever_the_order_of_threads(shape, groups) -> None:
    x, grad = batch(shape).float(), batch(shape, 5).float()
    arguments = (x, None, None, None, None, groups, 1.0, 1e-3, 0, False, 0, 0.0)
    runs = [EmulatedStages(order) for order in ("forward", "reversed", "random")]
    first, *others = (run.whiten_forward(*arguments) for run in runs)
    _, mean, _, *factors, _ = first
    backward, *backwards = (
        run.whiten_backward(grad, x, mean, *factors, None, None, None, 1.0, 0) for run in runs
    )
    for one, other in zip([first, first, backward, backward], [*others, *backwards], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (130, 2)])
def test_a_group_that_is_not_finite_is_nan_alone(channels, groups, bad, backend) -> None:
    x = torch.randn(80, channels)
    x[40, 1] = bad
    arguments = (x, None, None, None, None, groups, 1.0, 1e-3, 0, False, 0, 0.0)
    y = backends.get(backend).whiten_forward(*arguments)[0]
    size = channels // groups
    assert y[:, :size].isnan().all()
    assert y[:, size:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_rounded_once(dtype, backend) -> None:
    """A sum in float64, rounded to float32 on the way, would be off by one in some entries."""
    x = torch.randn(64, 40).to(dtype)
    mean, matrix = torch.zeros(40, dtype=torch.float64), torch.randn(1, 40, 40, dtype=torch.float64)
    y = backends.get(backend).apply(x, mean, matrix, None, None)
    assert torch.equal(y, (x.double() @ matrix[0]).to(dtype))
