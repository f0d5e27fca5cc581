"""``whiten`` over processes is ``whiten`` in one process that holds all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastwhiten
from tests.distributed import cases
from tests.distributed.processes import Processes
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64

pytestmark = pytest.mark.xdist_group("distributed")

# name: (shape, samples on each rank, options)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "two processes": ((20, 6), (10, 10), {}),
    "three processes, unequal": ((31, 6), (7, 20, 4), {}),
    "pca": ((31, 6), (7, 20, 4), {"kind": "pca"}),
    "cholesky": ((31, 6), (7, 20, 4), {"kind": "cholesky"}),
    "groups": ((31, 12), (7, 20, 4), {"groups": 3}),
    "one channel": ((9, 1), (4, 3, 2), {}),
    "fewer rows than channels here": ((30, 8), (5, 21, 4), {}),
    "fewer rows than channels everywhere": ((9, 12), (3, 4, 2), {}),
    "the same, groups": ((9, 36), (3, 0, 6), {"groups": 3}),
    "the same, oas": ((9, 12), (3, 4, 2), {"shrinkage": "oas"}),
    "the same, ledoit-wolf": ((9, 12), (3, 4, 2), {"shrinkage": "ledoit-wolf"}),
    "the same, planes": ((3, 24, 2, 3), (1, 2), {}),
    "one row here": ((12, 4), (1, 11), {}),
    "one row on each": ((3, 4), (1, 1, 1), {}),
    "no row here": ((20, 5), (12, 0, 8), {}),
    "all rows on one process": ((20, 5), (0, 0, 20), {"kind": "cholesky"}),
    "wide": ((40, 300), (30, 10), {"eps": 0.1}),
    "planes": ((6, 4, 3, 5), (2, 3, 1), {"groups": 2}),
    "planes, none here": ((5, 4, 3, 5), (4, 0, 1), {}),
    "sequence": ((6, 4, 7), (4, 2), {"kind": "pca"}),
    "oas": ((24, 6), (7, 13, 4), {"shrinkage": "oas", "groups": 2}),
    "ledoit-wolf": ((24, 6), (7, 13, 4), {"shrinkage": "ledoit-wolf", "groups": 2}),
    "ledoit-wolf, no row here": ((24, 6), (24, 0), {"shrinkage": "ledoit-wolf"}),
    "fixed shrinkage": ((24, 6), (7, 13, 4), {"shrinkage": 0.3, "kind": "cholesky"}),
}


def shifted(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """A batch whose parts have means of their own: what merging has to get right."""
    rows = torch.Size(shape).numel() // shape[1]
    x = plain.from_rows(spectra.random(rows, shape[1]), torch.empty(shape)).contiguous()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return x + owner.double().reshape(-1, *[1] * (len(shape) - 1))


def gather(results: list[Any], key: str) -> Tensor:
    return torch.cat([r[key] for r in results if r is not None])


def check(
    processes: Processes,
    x: Tensor,
    sizes: tuple[int, ...],
    options: dict[str, Any],
    weight: Tensor | None = None,
    atol: float = 1e-11,
) -> list[Any]:
    """Compare with one process, in float64: only a few roundings apart, at eps = 1e-3."""
    grad = torch.randn(x.shape, dtype=x.dtype)
    results = processes.run(cases.whiten, x, grad, sizes, weight, options)
    y, dx = plain.value_and_grad(fastwhiten.whiten, x, grad, sample_weight=weight, **options)
    torch.testing.assert_close(gather(results, "y"), y, rtol=0.0, atol=atol)
    torch.testing.assert_close(gather(results, "dx"), dx, rtol=0.0, atol=atol)
    return results


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(name: str, weighted: bool, backend: str, processes: Processes) -> None:
    shape, sizes, options = CASES[name]
    options = {**options, "backend": backend}
    weight = torch.rand(shape[0], dtype=torch.float64) + 0.1 if weighted else None
    x = shifted(shape, sizes)
    results = check(processes, x, sizes, options, weight)
    # The contract: one collective each way. Ledoit-Wolf's fourth moments take one more; so does to
    # know whether rows are fewer than channels, where that could be. Then weights are gathered too.
    rows, size = x.numel() // shape[1], shape[1] // options.get("groups", 1)
    counted = options.get("kind", "zca") == "zca" and size >= len(sizes)
    forward = 1 + counted
    if counted and rows <= size:
        forward += weighted
    elif options.get("shrinkage") == "ledoit-wolf":
        forward += 1
    for result in results[: len(sizes)]:
        assert result["collectives"] == (forward, 1)


@pytest.mark.interpret
def test_triton_kernels(processes: Processes) -> None:
    options = {"backend": "triton", "groups": 2, "shrinkage": "oas"}
    check(processes, shifted((11, 8), (4, 7)), (4, 7), options)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_channels_last(weighted: bool, processes: Processes) -> None:
    x = shifted((6, 4, 3, 5), (2, 3, 1)).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(6, 3, 5, dtype=torch.float64) if weighted else None
    check(processes, x, (2, 3, 1), {"groups": 2}, weight)


def test_weights_of_some_processes(processes: Processes) -> None:
    sizes = (6, 7, 4)
    x = shifted((17, 4), sizes)
    weight = torch.tensor([3.0] * 6 + [1.0] * 7 + [0.0] * 4).double()
    y = torch.cat(processes.run(cases.weights_here_and_there, x, sizes))
    torch.testing.assert_close(y, fastwhiten.whiten(x, sample_weight=weight), rtol=0, atol=1e-12)


# Two correct algorithms round differently, see test_accuracy.
K, WHY_K = 4.0, "different but equally good order of rounding"


def check_accuracy(processes: Processes, x: Tensor, sizes: tuple[int, ...], kind: str) -> None:
    grad = torch.randn(x.shape).to(x.dtype)
    results = processes.run(cases.whiten, x, grad, sizes, None, {"kind": kind})
    route = "iteration" if kind == "zca" else "eigh"
    truth = plain.value_and_grad(plain.whiten, x.double(), grad.double(), kind=kind, route=route)
    yardstick = plain.value_and_grad(plain.whiten, x, grad, kind=kind)
    for key, true, plainly in zip(("y", "dx"), truth, yardstick, strict=True):
        assert_close_to_fp64(gather(results, key), true, plainly, K, WHY_K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["zca", "cholesky"])
def test_accuracy(kind: str, dtype: torch.dtype, processes: Processes) -> None:
    """No worse than plain PyTorch in one process."""
    check_accuracy(processes, shifted((64, 8), (30, 5, 29)).to(dtype), (30, 5, 29), kind)


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
def test_mean_far_larger_than_deviation(kind: str, processes: Processes) -> None:
    x = spectra.large_mean(64, 8).float()
    check_accuracy(processes, x, (30, 5, 29), kind)
    # What adding up x and x x^T would give: not one digit of the covariance.
    _, covariance = fastwhiten.batch_statistics(x.double())
    sums = sum(t.T @ t for t in x.split((30, 5, 29))) / 64 - torch.outer(x.mean(0), x.mean(0))
    assert (sums - covariance[0]).norm() > covariance.norm()


@pytest.mark.parametrize("processes_used", [2, 3])
def test_combined_moments(processes_used: int, processes: Processes) -> None:
    """Mean and covariance from their definitions, the mean to half a unit in the last place."""
    sizes, weights = torch.tensor([30.0, 5.0, 29.0])[:processes_used], [0.7, 31.0, 5.0]
    parts = [(spectra.large_mean(int(n), 48) + i).float() for i, n in enumerate(sizes)]
    pairs = [fastwhiten.batch_statistics(t, groups=2) for t in parts]
    weight = torch.tensor(weights)[:processes_used]
    headers = torch.stack([sizes, weight, 1.0 / sizes], 1)
    means, covariances = (torch.stack(column) for column in zip(*pairs, strict=True))
    results = processes.run(cases.combine, means, covariances, headers)[:processes_used]
    share = (weight.double() / weight.double().sum()).reshape(-1, 1)
    mean = (share * means.double()).sum(0)  # below 2^14: a last place of 2^-10 at most
    deviation = (means.double() - mean).reshape(-1, 2, 24)
    covariance = (share.reshape(-1, 1, 1, 1) * covariances.double()).sum(0)
    covariance += torch.einsum("r,rgi,rgj->gij", share[:, 0], deviation, deviation)
    for i, result in enumerate(results):
        assert (result.mean.double() - mean).abs().max() <= 0.51 * 2.0**-10
        relative = (result.covariance - covariance).norm() / covariance.norm()
        assert relative < 1e-6 + 2.0**-10  # the mean's rounding, to first order
        torch.testing.assert_close(result.share.double(), share[i, 0])
        rows = 1.0 / (share[:, 0].square() / sizes).sum()
        torch.testing.assert_close(result.effective_rows.double(), rows)
        assert float(result.rows) == sizes.sum() and torch.equal(result.mean, results[0].mean)


def test_statistics_in_float64_of_float32_input(processes: Processes) -> None:
    sizes = (30, 5, 29)
    x = spectra.large_mean(64, 8).float()
    options = {"statistics_dtype": torch.float64}
    results = processes.run(cases.whiten, x, torch.ones_like(x), sizes, None, options)
    truth = plain.whiten(x.double())
    error = (gather(results, "y").double() - truth).norm() / truth.norm()
    assert error < 4 * torch.finfo(torch.float32).eps  # the rounding of the output


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((20, 5), (7, 9, 4), {}),
        ((20, 6), (13, 7), {"kind": "pca", "groups": 2}),
        ((20, 5), (7, 0, 13), {"kind": "cholesky", "shrinkage": "ledoit-wolf"}),
        ((6, 9), (1, 5), {}),
        ((4, 4, 2, 3), (3, 1), {"shrinkage": 0.2}),
    ],
    ids=["zca", "pca", "cholesky", "fewer rows than channels", "planes"],
)
def test_second_derivative(
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    options: dict[str, Any],
    weighted: bool,
    processes: Processes,
) -> None:
    options = {"eps": 0.1, **options}
    x = shifted(shape, sizes)
    weight = torch.rand(shape[0], dtype=torch.float64) + 0.1 if weighted else None
    grad, v = torch.randn_like(x), torch.randn_like(x)
    results = processes.run(cases.second_derivative, x, grad, v, sizes, weight, options)
    leaf, g = x.clone().requires_grad_(), grad.clone().requires_grad_()
    y = fastwhiten.whiten(leaf, sample_weight=weight, **options)
    (dx,) = torch.autograd.grad(y, leaf, g, create_graph=True)
    d_x, d_grad = torch.autograd.grad(dx, (leaf, g), v)
    torch.testing.assert_close(gather(results, "dx"), d_x, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(gather(results, "dgrad"), d_grad, rtol=0.0, atol=1e-10)


def test_few_rows_have_the_bits_of_one_process(processes: Processes) -> None:
    """The rows are gathered: nothing is lost to a D x D covariance that has no full rank."""
    sizes = (12, 9, 13)
    x = shifted((34, 48), sizes)
    for dtype in (torch.float32, torch.bfloat16):
        part = x.to(dtype)
        grad = torch.randn(part.shape).to(dtype)
        results = processes.run(cases.whiten, part, grad, sizes, None, {})
        y, dx = plain.value_and_grad(fastwhiten.whiten, part, grad)
        assert torch.equal(gather(results, "y"), y) and torch.equal(gather(results, "dx"), dx)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["backward", "grad", "compile", "compiled layer", "checkpoint", "vmap"]
)
@pytest.mark.parametrize(
    ("sizes", "channels"),
    [((6, 9, 5), 4), ((14, 6), 4), ((14, 6), 24)],
    ids=["world", "group", "few"],
)
def test_transforms(how: str, sizes: tuple[int, ...], channels: int, processes: Processes) -> None:
    x = shifted((20, channels), sizes)
    if how == "vmap":
        x = torch.randn(20, 3, channels, dtype=torch.float64)
    results = processes.run(cases.transformed, x, sizes, how)
    ours = torch.cat([r for r in results if r is not None])

    def loss(t: Tensor) -> Tensor:
        y = fastwhiten.whiten(t, eps=0.1)
        return (y.tanh() * torch.linspace(0, 1, t.shape[-1]).to(y)).sum()

    columns = x.unbind(1) if how == "vmap" else [x]
    expected = [torch.func.grad(loss)(c) for c in columns]
    truth = torch.stack(expected, 1) if how == "vmap" else expected[0]
    torch.testing.assert_close(ours, truth, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"shrinkage": "ledoit-wolf", "kind": "cholesky"}])
def test_nan_on_one_process_is_nan_on_all(options: dict[str, Any], processes: Processes) -> None:
    """In its group of channels; the other groups are as they were."""
    sizes, x = (7, 9, 4), shifted((20, 6), (7, 9, 4))
    options = {"groups": 2, **options}
    results = processes.run(cases.whiten, x, torch.ones_like(x), sizes, None, options)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[2, 4] = bad
        answers = processes.run(cases.whiten, broken, torch.ones_like(x), sizes, None, options)
        for key in ("y", "dx"):
            value, before = gather(answers, key), gather(results, key)
            assert torch.isnan(value[:, 3:]).all()
            assert torch.equal(value[:, :3], before[:, :3])


def test_too_few_rows_raise_on_every_process(processes: Processes) -> None:
    options: dict[str, Any] = {"process_group": "world"}
    for message in processes.run(cases.error, 0, options):
        assert "at least 2 rows" in message and "got 0" in message
    for message in processes.run(cases.error, 2, {**options, "zero_weight": True}):
        assert "not all zero on all processes" in message


def test_group_without_this_process(processes: Processes) -> None:
    message = processes.run(cases.error_outside)[2]
    assert "ChannelWhitening" in message and "member" in message


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ("world", ValueError, "init_process_group"),
        ("all", ValueError, '"world"'),
        (3, TypeError, "ProcessGroup, got int"),
    ],
)
def test_wrong_process_group(group: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        fastwhiten.whiten(torch.randn(8, 3), process_group=group)
    assert str(caught.value).startswith("whiten: ")
