"""``ChannelWhitening``: running statistics, evaluation, state."""

import copy
import io
import pickle
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten import ChannelWhitening, evaluation, validation
from tests.helpers import plain, spectra


def population(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean ``[C]`` and covariances ``[G, D, D]`` of a batch, in float64."""
    rows = plain.to_rows(x.double())
    p = plain.probabilities(None, x, torch.float64)
    pairs = [plain.covariance(part, p) for part in rows.chunk(groups, 1)]
    return torch.cat([m for m, _ in pairs]), torch.stack([s for _, s in pairs])


def close(value: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    """Equal up to a few float64 roundings of numbers of order one (or the stated tolerance)."""
    torch.testing.assert_close(value, expected, rtol=0.0, atol=atol)


def make(features: int = 6, **options: Any) -> ChannelWhitening:
    options.setdefault("dtype", torch.float64)
    return ChannelWhitening(features, **options)


def trained(backend: str, **options: Any) -> ChannelWhitening:
    layer = make(backend=backend, **options)
    for seed in range(3):
        layer(spectra.random(40, 6, seed))
    return layer


@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
@pytest.mark.parametrize("groups", [1, 3])
def test_training_is_whiten(kind: str, groups: int, backend: str) -> None:
    x, weight = spectra.random(40, 6), torch.rand(40, dtype=torch.float64)
    layer = make(kind=kind, groups=groups, eps=1e-2, backend=backend)
    for w in (None, weight):
        expected = fastwhiten.whiten(
            x, kind=kind, groups=groups, eps=1e-2, sample_weight=w, backend=backend
        )
        assert torch.equal(layer(x, w), expected)


@pytest.mark.parametrize("rows", [40, 4], ids=["feature side", "sample side"])
def test_affine_scales_and_shifts(rows: int, backend: str) -> None:
    x = spectra.random(rows, 6)
    layer = make(affine=True, backend=backend)
    assert torch.equal(layer.weight, torch.ones(6)) and torch.equal(layer.bias, torch.zeros(6))
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2.0, 6))
        layer.bias.copy_(torch.linspace(-1.0, 1.0, 6))
    white = fastwhiten.whiten(x, backend=backend)
    grad = torch.randn_like(x)
    y = layer(x)
    close(y, white * layer.weight + layer.bias)
    y.backward(grad)
    close(layer.weight.grad, (grad * white).sum(0))
    close(layer.bias.grad, grad.sum(0))
    layer.eval()
    white = copy.deepcopy(layer)
    white.reset_parameters()
    white.load_state_dict({k: v for k, v in layer.state_dict().items() if "run" in k}, strict=False)
    close(layer(x), white(x) * layer.weight + layer.bias)


@pytest.mark.parametrize("shape", [(40, 6), (4, 6), (3, 6, 4, 5)])
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0])
def test_running_statistics_follow_with_momentum(
    shape: tuple[int, ...], momentum: float, backend: str
) -> None:
    layer = make(groups=1, momentum=momentum, backend=backend)
    mean, covariance = torch.zeros(6).double(), torch.eye(6).double().unsqueeze(0)
    for seed in range(3):
        x = plain.from_rows(
            spectra.random(torch.Size(shape).numel() // 6, 6, seed), torch.empty(shape)
        )
        layer(x)
        batch_mean, batch_covariance = population(x, 1)
        mean = (1 - momentum) * mean + momentum * batch_mean
        covariance = (1 - momentum) * covariance + momentum * batch_covariance
        close(layer.running_mean, mean)
        close(layer.running_cov, covariance)
        assert layer.num_batches_tracked == seed + 1


def test_running_statistics_are_weighted(backend: str) -> None:
    x, weight = spectra.random(40, 6), torch.rand(40, dtype=torch.float64)
    layer = make(momentum=1.0, backend=backend)
    layer(x, weight)
    mean, covariance = plain.covariance(x, weight / weight.sum())
    close(layer.running_mean, mean)
    close(layer.running_cov[0], covariance)


def test_momentum_none_is_the_average(backend: str) -> None:
    layer, batches = make(momentum=None, groups=2, backend=backend), []
    for seed in range(4):
        x = spectra.random(30, 6, seed)
        layer(x)
        batches.append(population(x, 2))
    close(layer.running_mean, torch.stack([m for m, _ in batches]).mean(0))
    close(layer.running_cov, torch.stack([s for _, s in batches]).mean(0))


@pytest.mark.parametrize("rows", [40, 4], ids=["feature side", "sample side"])
@pytest.mark.parametrize("kind", ["zca", "cholesky"])
def test_running_matrix_is_the_average_of_matrices(kind: str, rows: int, backend: str) -> None:
    layer = make(kind=kind, running="matrix", momentum=None, backend=backend)
    matrices = []
    for seed in range(3):
        x = spectra.random(rows, 6, seed)
        layer(x)
        matrices.append(plain.whitening_matrix(population(x, 1)[1][0], kind, 1e-3, "eigh"))
    expected = torch.stack(matrices).mean(0)
    # Entries up to 1e-3^-1/2 = 32, condition numbers up to 4e3, in float64.
    close(layer.running_matrix[0], expected, 1e-10)
    layer.eval()
    close(layer(x), (x - layer.running_mean) @ expected, 1e-9)
    assert layer.running_cov is None and "running_cov" not in layer.state_dict()


@pytest.mark.parametrize("rows", [40, 4])
def test_batch_weight_whitens_with_the_blend(rows: int, backend: str) -> None:
    """With the running covariance as it was before this batch; the update takes the batch's own."""
    layer = make(batch_weight=0.3, momentum=0.5, backend=backend)
    before = layer.running_cov.clone()
    for seed in range(2):
        x = spectra.random(rows, 6, seed)
        y = layer(x)
        close(y, plain.whiten(x, running=before, batch_weight=0.3), 1e-11)
        before = 0.5 * before + 0.5 * population(x, 1)[1]
        close(layer.running_cov, before)


def test_evaluation_is_the_affine_map_of_the_running_statistics(backend: str) -> None:
    for kind in ("zca", "pca", "cholesky"):
        layer = trained(backend, kind=kind, groups=2, eps=1e-2).eval()
        x = spectra.random(7, 6, seed=9)
        parts = []
        for g, part in enumerate((x - layer.running_mean).chunk(2, 1)):
            parts.append(part @ plain.whitening_matrix(layer.running_cov[g], kind, 1e-2, "eigh"))
        close(layer(x), torch.cat(parts, 1), 1e-11)
        close(layer(x[:1]), layer(x)[:1])  # one row is enough
        assert layer(x[:0]).shape == (0, 6)  # and none gives none


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 4, 3), (2, 6, 2, 3, 2)])
def test_evaluation_of_maps(shape: tuple[int, ...], groups: int, backend: str) -> None:
    layer = trained(backend, groups=groups, affine=True).eval()
    x = torch.randn(shape, dtype=torch.float64)
    expected = plain.from_rows(layer(plain.to_rows(x)), x)
    close(layer(x), expected)
    if x.dim() == 4:
        close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


def test_fixed_shrinkage_applies_in_evaluation_and_estimates_do_not(backend: str) -> None:
    x = spectra.random(7, 6, seed=9)
    for shrinkage in (0.4, "oas", "ledoit-wolf"):
        layer = trained(backend, shrinkage=shrinkage).eval()
        s, shift = layer.running_cov[0], 1e-3
        if shrinkage == 0.4:
            s, shift = 0.6 * s, shift + 0.4 * s.trace() / 6
        close(layer(x), (x - layer.running_mean) @ plain.whitening_matrix(s, "zca", shift, "eigh"))


def test_evaluation_has_gradients(backend: str) -> None:
    layer = trained(backend, affine=True, groups=2).eval()
    assert torch.autograd.gradcheck(layer, spectra.random(3, 6).requires_grad_())
    layer(spectra.random(3, 6)).sum().backward()
    assert layer.weight.grad is not None and torch.equal(layer.bias.grad, torch.full((6,), 3.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_evaluation_in_lower_precision(dtype: torch.dtype, backend: str) -> None:
    layer = trained(backend, dtype=torch.float32).eval()
    x = spectra.random(50, 6).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    matrix = plain.whitening_matrix(layer.running_cov[0].double(), "zca", 1e-3, "eigh")
    expected = (x.double() - layer.running_mean.double()) @ matrix
    # Rounding of the output, and of a float32 matrix of condition 10 for float32 itself.
    error = (y.double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


def count_factorisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = evaluation.compute
    monkeypatch.setattr(evaluation, "compute", lambda *a: calls.append(1) or original(*a))
    return calls


def test_the_matrix_is_computed_when_the_statistics_change_and_only_then(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = trained(backend)
    calls, x = count_factorisations(monkeypatch), spectra.random(8, 6)
    layer.eval()
    assert not calls
    for _ in range(3):
        layer(x)
    assert len(calls) == 1, "once for three evaluations"
    layer.train()(spectra.random(40, 6))
    assert len(calls) == 1, "training does not need it"
    layer.eval()(x)
    assert len(calls) == 2
    with torch.no_grad():
        layer.running_cov.mul_(4.0)
    layer(x)
    assert len(calls) == 3, "an edit of the buffer in place is seen"
    layer.reset_running_stats()
    close(layer(x), x / (1 + 1e-3) ** 0.5)
    assert len(calls) == 4
    layer.running_cov = 2 * torch.eye(6, dtype=torch.float64).unsqueeze(0)
    close(layer(x), x / (2 + 1e-3) ** 0.5)
    assert len(calls) == 5, "so is another buffer in its place"


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_state_dict_round_trip(running: str, backend: str) -> None:
    source = trained(backend, running=running, affine=True)
    name = "running_cov" if running == "covariance" else "running_matrix"
    keys = ["weight", "bias", "running_mean", name, "num_batches_tracked"]
    assert list(source.state_dict()) == keys
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    x = spectra.random(8, 6, seed=5)
    target = make(running=running, affine=True, backend=backend).eval()
    fresh = target(x)
    target.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(target(x), source.eval()(x)), "the cached matrix is refreshed by the load"
    assert not torch.equal(target(x), fresh)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_load_state_dict_through_a_parent_and_with_assign(backend: str) -> None:
    source = torch.nn.Sequential(trained(backend)).eval()
    x = spectra.random(8, 6, seed=5)
    for assign in (False, True):
        target = torch.nn.Sequential(make(backend=backend)).eval()
        target(x)
        target.load_state_dict(copy.deepcopy(source.state_dict()), assign=assign)
        assert torch.equal(target(x), source(x))


def test_sequences_with_channels_last_are_told_so(backend: str) -> None:
    layer = make(backend=backend)
    x = torch.randn(5, 20, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="construct the layer with channel_dim=-1"):
        layer(x)
    with pytest.raises(ValueError, match=r"\[N, ..., 6\], got .* the layer with channel_dim=1"):
        make(channel_dim=-1, backend=backend)(x.movedim(-1, 1))
    with pytest.raises(ValueError, match="construct the layer with num_features=20"):
        layer(x[..., :4])
    layer(x[:, :6])  # as nn.BatchNorm1d: where L equals C nothing can notice it


def test_the_types_of_options_list_what_is_allowed() -> None:
    hints = get_type_hints(ChannelWhitening.__init__, localns={"ProcessGroup": object})
    assert get_args(hints["kind"]) == tuple(validation.KINDS)
    assert get_args(hints["running"]) == ("covariance", "matrix")
    assert get_args(hints["backend"]) == ("auto", "native", "triton", "reference")
    kind = get_type_hints(fastwhiten.whiten, localns={"ProcessGroup": object})["kind"]
    assert kind == hints["kind"]


def test_wrong_state_dicts_are_refused(backend: str) -> None:
    state = trained(backend).state_dict()
    with pytest.raises(RuntimeError, match="running_cov"):
        make(groups=2, backend=backend).load_state_dict(state)
    with pytest.raises(RuntimeError, match="running_matrix"):
        make(running="matrix", backend=backend).load_state_dict(state)


@pytest.mark.parametrize("training", [True, False])
def test_copies_are_equal_and_independent(training: bool, backend: str) -> None:
    layer = trained(backend, affine=True).train(training)
    x = spectra.random(8, 6, seed=5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copy.deepcopy(other)(x), copy.deepcopy(layer)(x))
        other.running_cov.mul_(2.0)
        other.eval(), layer.eval()
        assert not torch.equal(other(x), layer(x))
        layer.train(training)


def test_moving_to_another_dtype(backend: str) -> None:
    layer = trained(backend, dtype=torch.float32, affine=True)
    x = spectra.random(8, 6, seed=5)
    evaluated = layer.eval()(x.float())
    layer.double()
    assert layer.running_cov.dtype == layer.weight.dtype == torch.float64
    assert layer.num_batches_tracked.dtype == torch.int64
    close(layer(x).float(), evaluated, 1e-5)  # float32 rounding of a matrix of condition 10
    # The matrix is computed again in float64, not converted.
    matrix = plain.whitening_matrix(layer.running_cov[0], "zca", 1e-3, "eigh")
    close(layer(x), (x - layer.running_mean) @ matrix)
    layer.train()(x)
    layer.to(torch.float16)
    assert layer.running_cov.dtype == torch.float16
    assert (
        torch.isfinite(layer.eval()(x.half())).all()
        and torch.isfinite(layer.train()(x.half())).all()
    )


def test_half_precision_buffers_still_follow(backend: str) -> None:
    layer = make(dtype=torch.float16, momentum=0.5, backend=backend)
    x = spectra.random(40, 6).half()
    layer(x)
    expected = 0.5 * torch.eye(6) + 0.5 * population(x, 1)[1][0]
    close(layer.running_cov[0].double(), expected, 2 * torch.finfo(torch.float16).eps)


def test_without_running_statistics(backend: str) -> None:
    layer = make(track_running_stats=False, backend=backend)
    assert layer.running_mean is None and not layer.state_dict()
    x = spectra.random(20, 6)
    assert torch.equal(layer.eval()(x), fastwhiten.whiten(x, backend=backend))
    layer.reset_running_stats()


def test_evaluation_leaves_the_statistics_alone(backend: str) -> None:
    layer = trained(backend).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(spectra.random(20, 6, seed=8))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


def test_reset_parameters(backend: str) -> None:
    layer = trained(backend, affine=True)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    layer.reset_parameters()
    assert torch.equal(layer.running_cov[0], torch.eye(6)) and not layer.running_mean.any()
    assert layer.num_batches_tracked == 0 and torch.equal(layer.weight, torch.ones(6))


def test_meta_device_then_materialised(backend: str) -> None:
    layer = ChannelWhitening(6, device="meta", backend=backend).eval().to_empty(device="cpu")
    layer.reset_parameters()
    x = spectra.random(5, 6).float()
    torch.testing.assert_close(layer(x), x / (1 + 1e-3) ** 0.5)


def test_extra_repr_names_what_was_chosen() -> None:
    assert repr(ChannelWhitening(8)) == (
        "ChannelWhitening(8, groups=1, kind='zca', eps=0.001, momentum=0.1, affine=False, "
        "track_running_stats=True)"
    )
    layer = ChannelWhitening(
        8, running="matrix", shrinkage="oas", backend="reference", statistics_dtype=torch.float64
    )
    assert layer.extra_repr().endswith(
        ", running='matrix', shrinkage='oas', backend='reference', statistics_dtype=torch.float64"
    )
    assert "batch_weight=0.5" in repr(ChannelWhitening(8, batch_weight=0.5))


def test_training_reduces_a_loss(backend: str) -> None:
    """Thirty steps of a small classifier around the layer; the loss falls by half."""
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 8), ChannelWhitening(8, affine=True, backend=backend),
        torch.nn.Linear(8, 3),
    )  # fmt: skip
    x, label = torch.randn(90, 10), torch.arange(90) % 3
    x[:, :3] += 2 * torch.nn.functional.one_hot(label, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
