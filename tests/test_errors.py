"""The text of every error: what was expected, what came, what to do."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening, batch_statistics, symmetric_eigh, whiten, whitening_matrix

X = torch.arange(24.0).reshape(6, 4).sin()


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# name: (call, exception, the whole message)
INPUTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not a tensor": (
        lambda: whiten([[1.0, 2.0]]),
        TypeError,
        "whiten: expected x to be a torch.Tensor, got list",
    ),
    "integers": (
        lambda: whiten(torch.ones(4, 2, dtype=torch.int64)),
        TypeError,
        "whiten: expected x of dtype float16, bfloat16, float32 or float64, got torch.int64; "
        "convert it with x.float()",
    ),
    "complex": (
        lambda: whiten(torch.ones(4, 2, dtype=torch.complex64)),
        TypeError,
        "whiten: expected x of dtype float16, bfloat16, float32 or float64, got torch.complex64; "
        "convert it with x.float()",
    ),
    "one dimension": (
        lambda: whiten(torch.ones(4)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least one channel, got [4]; "
        "add a batch dimension with x.unsqueeze(0) or check the order of dimensions",
    ),
    "no dimension": (
        lambda: whiten(torch.ones(())),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least one channel, got []; "
        "add a batch dimension with x.unsqueeze(0) or check the order of dimensions",
    ),
    "no channels": (
        lambda: whiten(torch.ones(4, 0)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least one channel, got [4, 0]; "
        "add a batch dimension with x.unsqueeze(0) or check the order of dimensions",
    ),
    "one row": (
        lambda: whiten(torch.ones(1, 4)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least 2 rows (N times spatial size), "
        "got [1, 4], which has 1; a covariance needs more: use a larger batch, drop_last=True in "
        "the DataLoader, or .eval()",
    ),
    "one position": (
        lambda: whiten(torch.ones(1, 4, 1, 1)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least 2 rows (N times spatial size), "
        "got [1, 4, 1, 1], which has 1; a covariance needs more: use a larger batch, "
        "drop_last=True in the DataLoader, or .eval()",
    ),
    "empty batch": (
        lambda: whiten(torch.ones(0, 4)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least 2 rows (N times spatial size), "
        "got [0, 4], which has 0; skip empty batches",
    ),
    "empty map": (
        lambda: whiten(torch.ones(3, 4, 0, 2)),
        ValueError,
        "whiten: expected x of shape [N, C, ...] with at least 2 rows (N times spatial size), "
        "got [3, 4, 0, 2], which has 0; skip empty batches",
    ),
    "empty statistics": (
        lambda: batch_statistics(torch.ones(0, 4)),
        ValueError,
        "batch_statistics: expected x of shape [N, C, ...] with at least 1 rows (N times spatial "
        "size), got [0, 4], which has 0; skip empty batches",
    ),
    "groups do not divide": (
        lambda: whiten(X, groups=3),
        ValueError,
        "whiten: expected groups to divide the number of channels, got 4 channels in 3 groups; "
        "choose a divisor of 4",
    ),
    "more groups than channels": (
        lambda: batch_statistics(X, groups=8),
        ValueError,
        "batch_statistics: expected groups to divide the number of channels, got 4 channels in 8 "
        "groups; choose a divisor of 4",
    ),
    **{
        f"groups={groups!r}": (
            lambda groups=groups: whiten(X, groups=groups),
            ValueError,
            f"whiten: expected groups to be a positive integer, got {groups!r}",
        )
        for groups in (0, -1, 2.0, True)
    },
}

OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "kind": (
        lambda: whiten(X, kind="ZCA"),
        ValueError,
        "whiten: expected kind to be one of ['zca', 'pca', 'cholesky'], got 'ZCA'",
    ),
    **{
        f"eps={eps!r}": (
            lambda eps=eps: whiten(X, eps=eps),
            ValueError,
            "whiten: expected eps to be a finite number > 0 (it keeps rank-deficient batches "
            f"invertible), got {eps!r}; 1e-3 is the default",
        )
        for eps in (0.0, -1e-3, math.inf, math.nan, "1e-3", None)
    },
    **{
        f"shrinkage={method!r}": (
            lambda method=method: whiten(X, shrinkage=method),
            ValueError,
            "whiten: expected shrinkage to be None, one of ['oas', 'ledoit-wolf'] or an intensity "
            f"in [0, 1], got {method!r}",
        )
        for method in ("lw", -0.1, 1.5, math.nan, True)
    },
    "statistics_dtype": (
        lambda: whiten(X, statistics_dtype=torch.float16),
        ValueError,
        "whiten: expected statistics_dtype to be None, torch.float32 or torch.float64, "
        "got torch.float16",
    ),
    "backend": (
        lambda: whiten(X, backend="cuda"),
        ValueError,
        "whiten: expected backend to be one of ['auto', 'native', 'reference', 'triton'], "
        "got 'cuda'",
    ),
    "backend of the layer": (
        lambda: ChannelWhitening(4, backend="fast"),
        ValueError,
        "ChannelWhitening: expected backend to be one of "
        "['auto', 'native', 'reference', 'triton'], got 'fast'",
    ),
    "backend of statistics": (
        lambda: batch_statistics(X, backend="fast"),
        ValueError,
        "backend: expected one of ['auto', 'native', 'reference', 'triton'], got 'fast'",
    ),
    "native on another device": (
        lambda: whiten(X.to("meta"), backend="native"),
        ValueError,
        'backend="native" serves CPU and CUDA tensors, got a tensor on meta; move it with .cpu() '
        'or use backend="auto"',
    ),
    "kind of whitening_matrix": (
        lambda: whitening_matrix(torch.eye(2), kind="x"),
        ValueError,
        "whitening_matrix: expected kind to be one of ['zca', 'pca', 'cholesky'], got 'x'",
    ),
    "eps of whitening_matrix": (
        lambda: whitening_matrix(torch.eye(2), eps=0),
        ValueError,
        "whitening_matrix: expected eps to be a finite number > 0 (it keeps rank-deficient "
        "batches invertible), got 0; 1e-3 is the default",
    ),
    "integer matrix": (
        lambda: symmetric_eigh(torch.ones(2, 2, dtype=torch.int32)),
        TypeError,
        "symmetric_eigh: expected a to be a float32 or float64 tensor, got torch.int32; "
        "convert it with .float()",
    ),
    "half matrix": (
        lambda: whitening_matrix(torch.eye(2).half()),
        TypeError,
        "whitening_matrix: expected covariance to be a float32 or float64 tensor, got "
        "torch.float16; convert it with .float()",
    ),
    "matrix of a list": (
        lambda: symmetric_eigh([[1.0]]),
        TypeError,
        "symmetric_eigh: expected a to be a float32 or float64 tensor, got list; "
        "convert it with .float()",
    ),
    **{
        f"matrix {shape}": (
            lambda shape=shape: symmetric_eigh(torch.ones(shape)),
            ValueError,
            f"symmetric_eigh: expected a of shape [..., D, D] with D >= 1, got {list(shape)}",
        )
        for shape in ((3,), (2, 3), (2, 0, 0))
    },
}

WEIGHTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (
        lambda: whiten(X, sample_weight=[1.0] * 6),
        TypeError,
        "whiten: expected sample_weight to be a floating-point tensor, got list",
    ),
    "integers": (
        lambda: whiten(X, sample_weight=torch.ones(6, dtype=torch.int64)),
        TypeError,
        "whiten: expected sample_weight to be a floating-point tensor, got torch.int64",
    ),
    "wrong length": (
        lambda: whiten(X, sample_weight=torch.ones(5)),
        ValueError,
        "whiten: expected sample_weight of shape [N] = [6] or [N, ...] = [6], got [5]",
    ),
    "wrong shape": (
        lambda: whiten(torch.ones(2, 4, 3, 5), sample_weight=torch.ones(2, 5, 3)),
        ValueError,
        "whiten: expected sample_weight of shape [N] = [2] or [N, ...] = [2, 3, 5], got [2, 5, 3]",
    ),
    "per channel": (
        lambda: batch_statistics(X, sample_weight=torch.ones(4)),
        ValueError,
        "batch_statistics: expected sample_weight of shape [N] = [6] or [N, ...] = [6], got [4]",
    ),
    "other device": (
        lambda: whiten(X, sample_weight=torch.ones(6, device="meta")),
        ValueError,
        "whiten: expected sample_weight on the device of x, cpu, got meta; "
        "move it with sample_weight.to(x.device)",
    ),
    "requires grad": (
        lambda: whiten(X, sample_weight=torch.ones(6, requires_grad=True)),
        ValueError,
        "whiten: sample_weight requires grad, but gradients with respect to it are not defined "
        "here; pass sample_weight.detach()",
    ),
    "negative": (
        lambda: whiten(X, sample_weight=weights(1, 1, -0.5, 1, 1, 1)),
        ValueError,
        "whiten: expected sample_weight with finite values >= 0 that are not all zero, "
        "got minimum -0.5 and sum 4.5",
    ),
    "all zero": (
        lambda: whiten(X, sample_weight=torch.zeros(6)),
        ValueError,
        "whiten: expected sample_weight with finite values >= 0 that are not all zero, "
        "got minimum 0.0 and sum 0.0",
    ),
    "nan": (
        lambda: whiten(X, sample_weight=weights(1, 1, math.nan, 1, 1, 1)),
        ValueError,
        "whiten: expected sample_weight with finite values >= 0 that are not all zero, "
        "got minimum nan and sum nan",
    ),
    "infinite": (
        lambda: ChannelWhitening(4)(X, weights(1, 1, math.inf, 1, 1, 1)),
        ValueError,
        "ChannelWhitening: expected sample_weight with finite values >= 0 that are not all zero, "
        "got minimum 1.0 and sum inf",
    ),
}

LAYER: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{
        f"num_features={count!r}": (
            lambda count=count: ChannelWhitening(count),
            ValueError,
            f"ChannelWhitening: expected num_features to be a positive integer, got {count!r}",
        )
        for count in (0, -3, 4.0)
    },
    "groups": (
        lambda: ChannelWhitening(6, groups=4),
        ValueError,
        "ChannelWhitening: expected groups to divide the number of channels, got 6 channels in 4 "
        "groups; choose a divisor of 6",
    ),
    **{
        f"momentum={momentum!r}": (
            lambda momentum=momentum: ChannelWhitening(4, momentum=momentum),
            ValueError,
            f"ChannelWhitening: expected momentum in [0, 1] or None, got {momentum!r}",
        )
        for momentum in (-0.1, 1.5, math.nan)
    },
    **{
        f"batch_weight={value!r}": (
            lambda value=value: ChannelWhitening(4, batch_weight=value),
            ValueError,
            f"ChannelWhitening: expected batch_weight in (0, 1], got {value!r}",
        )
        for value in (0.0, -0.5, 1.5, math.nan)
    },
    "batch_weight without statistics": (
        lambda: ChannelWhitening(4, batch_weight=0.5, track_running_stats=False),
        ValueError,
        "ChannelWhitening: batch_weight=0.5 blends with the running covariance; it needs "
        "track_running_stats=True and running='covariance'",
    ),
    "batch_weight with a running matrix": (
        lambda: ChannelWhitening(4, batch_weight=0.5, running="matrix"),
        ValueError,
        "ChannelWhitening: batch_weight=0.5 blends with the running covariance; it needs "
        "track_running_stats=True and running='covariance'",
    ),
    "running": (
        lambda: ChannelWhitening(4, running="cov"),
        ValueError,
        "ChannelWhitening: expected running to be 'covariance' or 'matrix', got 'cov'",
    ),
    "running matrix of pca": (
        lambda: ChannelWhitening(4, running="matrix", kind="pca"),
        ValueError,
        "ChannelWhitening: running='matrix' averages whitening matrices over batches, and PCA's "
        "rows change order and sign from batch to batch; use running='covariance'",
    ),
    "kind": (
        lambda: ChannelWhitening(4, kind="cd"),
        ValueError,
        "ChannelWhitening: expected kind to be one of ['zca', 'pca', 'cholesky'], got 'cd'",
    ),
    "other number of features": (
        lambda: ChannelWhitening(8)(X),
        ValueError,
        "ChannelWhitening: expected x of shape [N, 8, ...], got [6, 4]; "
        "construct the layer with num_features=4",
    ),
    "other number of features in evaluation": (
        lambda: ChannelWhitening(2).eval()(X),
        ValueError,
        "ChannelWhitening: expected x of shape [N, 2, ...], got [6, 4]; "
        "construct the layer with num_features=4",
    ),
    "other device": (
        lambda: ChannelWhitening(4)(X.to("meta")),
        ValueError,
        "ChannelWhitening: expected x on the device of the layer, cpu, got meta; "
        "move one of them with .to(device)",
    ),
    "one row in training": (
        lambda: ChannelWhitening(4)(X[:1]),
        ValueError,
        "ChannelWhitening: expected x of shape [N, C, ...] with at least 2 rows (N times spatial "
        "size), got [1, 4], which has 1; a covariance needs more: use a larger batch, "
        "drop_last=True in the DataLoader, or .eval()",
    ),
    "empty batch in training": (
        lambda: ChannelWhitening(4)(X[:0]),
        ValueError,
        "ChannelWhitening: expected x of shape [N, C, ...] with at least 2 rows (N times spatial "
        "size), got [0, 4], which has 0; skip empty batches",
    ),
    "integers in evaluation": (
        lambda: ChannelWhitening(4).eval()(X.long()),
        TypeError,
        "ChannelWhitening: expected x of dtype float16, bfloat16, float32 or float64, got "
        "torch.int64; convert it with x.float()",
    ),
}

TABLES = {"input": INPUTS, "option": OPTIONS, "weight": WEIGHTS, "layer": LAYER}
ALL = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", ALL)
def test_message(name: str) -> None:
    call, exception, message = ALL[name]
    with pytest.raises(exception, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("name", ["negative", "all zero"])
def test_weights_whose_values_cannot_be_read_give_nan(name: str) -> None:
    """Under a transform the check of values does not run; the result says it instead."""
    value = torch.zeros(6) if name == "all zero" else weights(1.0, 1.0, -6.0, 1.0, 1.0, 1.0)
    y = torch.func.vmap(lambda w: fastwhiten.whiten(X, sample_weight=w))(value.unsqueeze(0))
    assert y.isnan().any()


def test_a_failed_call_leaves_the_layer_alone() -> None:
    layer = ChannelWhitening(4)
    for bad in (X[:1], X[:, :2], X.long()):
        with pytest.raises((ValueError, TypeError)):
            layer(bad)
    assert layer.num_batches_tracked == 0 and torch.equal(layer.running_cov[0], torch.eye(4))
