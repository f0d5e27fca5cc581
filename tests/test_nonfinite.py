"""Non-finite input: NaN out, nothing raised, nothing remembered."""

import copy

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import plain, spectra

KINDS = ("zca", "pca", "cholesky")
BAD = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "overflow": 1e30,  # finite, but its square is not in float32
}
ROWS = {"feature side": 20, "sample side": 3}


def poisoned(rows: int, bad: float, channel: int = 5) -> torch.Tensor:
    x = spectra.random(rows, 12).float()
    x[1, channel] = bad
    return x


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_group_is_nan_and_others_keep_their_bits(
    rows: int, kind: str, name: str, backend: str
) -> None:
    clean = fastwhiten.whiten(poisoned(rows, 0.5), kind=kind, groups=3, backend=backend)
    y = fastwhiten.whiten(poisoned(rows, BAD[name]), kind=kind, groups=3, backend=backend)
    assert torch.equal(y[:, :4], clean[:, :4]) and torch.equal(y[:, 8:], clean[:, 8:])
    assert y[:, 4:8].isnan().all()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gradients_are_nan_in_the_group_alone(
    rows: int, kind: str, name: str, backend: str
) -> None:
    grad = torch.randn(rows, 12)
    options = {"kind": kind, "groups": 3, "backend": backend}
    clean = plain.value_and_grad(fastwhiten.whiten, poisoned(rows, 0.5), grad, **options)[1]
    dx = plain.value_and_grad(fastwhiten.whiten, poisoned(rows, BAD[name]), grad, **options)[1]
    assert torch.equal(dx[:, :4], clean[:, :4]) and torch.equal(dx[:, 8:], clean[:, 8:])
    assert dx[:, 4:8].isnan().any() and not torch.isfinite(dx[:, 4:8]).all(0).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_gradient_with_nan_is_passed_on(rows: int, kind: str, backend: str) -> None:
    x, grad = spectra.random(rows, 12).float(), torch.randn(rows, 12)
    grad[0, 0] = float("nan")
    _, dx = plain.value_and_grad(fastwhiten.whiten, x, grad, kind=kind, groups=3, backend=backend)
    assert dx[:, :4].isnan().any() and torch.isfinite(dx[:, 4:]).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_of_every_dtype(dtype: torch.dtype, layout: torch.memory_format, backend: str) -> None:
    x = torch.randn(2, 4, 3, 3).to(dtype).contiguous(memory_format=layout)
    x[1, 2, 0, 1] = float("inf")
    y = fastwhiten.whiten(x, groups=2, backend=backend)
    assert torch.isfinite(y[:, :2]).all() and y[:, 2:].isnan().all()


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit-wolf", 0.3])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_with_shrinkage(rows: int, shrinkage, backend: str) -> None:
    x = poisoned(rows, float("nan"))
    y = fastwhiten.whiten(x, groups=3, shrinkage=shrinkage, backend=backend)
    assert y[:, 4:8].isnan().all() and torch.isfinite(y[:, :4]).all()


@pytest.mark.parametrize("size", [1, 2, 12, 40, 70])
def test_every_eigensolver_ends(size: int, backend: str) -> None:
    """Whatever solver serves a size, NaN and Inf everywhere end in NaN, not in an endless loop."""
    for bad in (float("nan"), float("inf")):
        for rows in (2 * size + 2, max(2, size // 2)):
            x = torch.full((rows, size), bad)
            y, dx = plain.value_and_grad(
                fastwhiten.whiten, x, torch.ones(rows, size), backend=backend
            )
            assert y.isnan().all() and dx.isnan().all()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("running", ["covariance", "matrix"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_running_statistics_are_untouched(
    rows: int, momentum: float | None, running: str, name: str, backend: str
) -> None:
    layer = ChannelWhitening(12, momentum=momentum, running=running, backend=backend)
    layer(spectra.random(rows, 12, seed=4).float())
    before = copy.deepcopy(layer.state_dict())
    assert layer(poisoned(rows, BAD[name])).isnan().all()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key
    layer(spectra.random(rows, 12, seed=5).float())
    assert layer.num_batches_tracked == 2
    assert all(torch.isfinite(value).all() for value in layer.state_dict().values())


@pytest.mark.parametrize("batch_weight", [0.3, 1.0])
def test_the_step_after_is_as_if_nothing_had_happened(batch_weight: float, backend: str) -> None:
    first, second = (
        ChannelWhitening(12, batch_weight=batch_weight, backend=backend) for _ in range(2)
    )
    x = spectra.random(20, 12).float()
    first(poisoned(20, float("inf")))
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_evaluation_passes_nan_through_row_by_row(backend: str) -> None:
    layer = ChannelWhitening(12, groups=3, backend=backend).eval()
    x = poisoned(20, float("nan"))
    y = layer(x)
    assert y[1, 4:8].isnan().all()
    keep = torch.arange(20) != 1
    assert torch.isfinite(y[keep]).all() and torch.isfinite(y[1, :4]).all()


def test_statistics_and_matrices(backend: str) -> None:
    mean, covariance = fastwhiten.batch_statistics(
        poisoned(20, float("nan")), groups=3, backend=backend
    )
    assert mean[5].isnan() and torch.isfinite(mean[:4]).all()
    assert covariance[1, 1].isnan().all() and torch.isfinite(covariance[[0, 2]]).all()
    for kind in KINDS:
        w = fastwhiten.whitening_matrix(covariance, kind=kind, backend=backend)
        assert w[1].isnan().any() and torch.isfinite(w[[0, 2]]).all()
    assert fastwhiten.symmetric_eigh(covariance, backend=backend)[0][1].isnan().all()
