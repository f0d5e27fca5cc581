"""``torch.library.opcheck`` on every raw op: schema, fake kernels, AOT dispatch, all arguments.

The ops have no autograd kernels (the Functions around them do that), so inputs do not require
gradients here.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.helpers import spectra

OPS = (
    "statistics",
    "intensity",
    "eigh",
    "eigh_sweeps",
    "factor",
    "apply",
    "backward_reduce",
    "backward_matrix",
    "backward_apply",
    "whiten_forward",
    "whiten_backward",
    "sample_statistics",
    "sample_apply",
    "sample_backward",
)
UTILS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
G, D = 2, 3
C, M = G * D, 20


def acc(dtype: torch.dtype) -> torch.dtype:
    return reference.accumulation_dtype(dtype)


def inputs(layout: str, dtype: torch.dtype) -> Tensor:
    rows = spectra.random(M, C).to(dtype)
    if layout == "rows":
        return rows
    return rows.reshape(4, 5, C).transpose(1, 2).contiguous()


def feature_side(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    t = acc(dtype)
    p = torch.full((M,), 1 / M, dtype=t)
    gamma, beta = torch.rand(C, dtype=t), torch.rand(C, dtype=t)
    for layout in ("rows", "planes"):
        x, grad = inputs(layout, dtype), inputs(layout, dtype).flip(0).contiguous()
        for weight in (None, p):
            yield "statistics", (x, weight, G, False)
        yield "statistics", (x, p.double(), G, True)
        mean, covariance = reference.statistics(x, None, G, False)
        _, _, matrix = reference.factor(covariance, None, None, 1.0, 1e-3, reference.ZCA)
        for scale, shift in ((None, None), (gamma, beta)):
            yield "apply", (x, mean, matrix, scale, shift)
        yield "backward_reduce", (x, grad, mean, G)
        for method in (reference.FIXED, reference.OAS, reference.LEDOIT_WOLF):
            for weight, old in ((None, None), (p, covariance.flip(0).contiguous())):
                yield "intensity", (x, mean, covariance, old, weight, 0.3, method, 0.2)
        for scale, weight in ((None, None), (gamma, p)):
            yield "backward_apply", (x, grad, mean, beta, matrix, covariance, scale, weight)


def matrices(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    _, s = reference.statistics(spectra.random(M, C).to(dtype), None, G, False)
    rho, gamma = torch.full((G,), 0.2, dtype=dtype), torch.rand(C, dtype=dtype)
    for op in ("eigh", "eigh_sweeps"):
        yield op, (s,)
        yield op, (s, reference.eigh(s)[1])
    for kind in (reference.ZCA, reference.PCA, reference.CHOLESKY):
        for running, shrink, weight in ((None, None, 1.0), (s.flip(0).contiguous(), rho, 0.3)):
            start = None if running is None else reference.eigh(s)[1]
            yield "factor", (s, running, shrink, weight, 1e-3, kind, start)
            factors = reference.factor(s, running, shrink, weight, 1e-3, kind)
            scale = None if shrink is None else gamma
            yield "backward_matrix", (s, *factors, scale, shrink, weight, kind)


def whole_passes(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    t = acc(dtype)
    p, gamma, rho = (torch.full((n,), 1 / n, dtype=t) for n in (M, C, G))
    for layout in ("rows", "planes"):
        x = inputs(layout, dtype)
        running = reference.statistics(x, None, G, False)[1]
        for kind in (reference.ZCA, reference.CHOLESKY):
            for scale, weight, old in ((None, None, None), (gamma, p, running)):
                method = reference.NO_SHRINKAGE if scale is None else reference.OAS
                common = (x, scale, scale, weight, old, G, 0.3, 1e-3, kind, False)
                arguments = (*common, method, 0.0, None if old is None else reference.eigh(old)[1])
                yield "whiten_forward", arguments
                _, mean, _, *factors, _ = reference.whiten_forward(*arguments)
                shrink = None if scale is None else rho
                rest = (scale, shrink, weight, 0.3, kind)
                yield "whiten_backward", (x, x, mean, *factors, *rest)


def sample_side(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    x = spectra.random(4, 14).to(dtype)
    t = acc(dtype)
    rho = torch.full((G,), 0.2, dtype=t)
    for p, shrink in ((None, None), (torch.full((4,), 0.25, dtype=t), rho)):
        yield "sample_statistics", (x, p, G, False)
        _, scaled, gram = reference.sample_statistics(x, p, G, False)
        eigenvalues, vectors = reference.eigh(gram)
        yield "sample_apply", (scaled, eigenvalues, vectors, p, shrink, 1e-3, dtype)
        _, projected = reference.sample_apply(scaled, eigenvalues, vectors, p, shrink, 1e-3, dtype)
        yield "sample_backward", (x, projected, eigenvalues, vectors, p, shrink, 1e-3)
    yield "sample_statistics", (x, None, G, True)


def contiguous(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """LAPACK's eigenvectors come in columns; the compiled ops take and give rows."""
    return tuple(a.contiguous() if isinstance(a, Tensor) else a for a in arguments)


@cache
def calls() -> list[Any]:
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        stages = (*feature_side(dtype), *whole_passes(dtype), *sample_side(dtype))
        if dtype != torch.bfloat16:
            stages += (*matrices(dtype),)
        for op, arguments in stages:
            found.append(pytest.param(op, contiguous(arguments), id=f"{op}-{str(dtype)[6:]}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("op", "arguments"), calls())
def test_opcheck(op: str, arguments: tuple[Any, ...]) -> None:
    overload = getattr(torch.ops.fastwhiten, op).default
    # Compiling is what takes the time: one dtype stands for the others there.
    floats = [a.dtype for a in arguments if isinstance(a, Tensor)]
    utils = UTILS if floats[0] == torch.float32 else UTILS[:3]
    result = torch.library.opcheck(overload, arguments, test_utils=utils)
    assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize(("op", "arguments"), calls())
def test_results_have_the_dtypes_and_strides_of_the_reference(
    op: str, arguments: tuple[Any, ...]
) -> None:
    native = getattr(torch.ops.fastwhiten, op)(*arguments)
    expected = getattr(reference, op)(*arguments)
    as_tuple = native if isinstance(native, (tuple, list)) else (native,)
    for value, ref in zip(
        as_tuple, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert value.shape == ref.shape and value.dtype == ref.dtype
        assert value.is_contiguous()


def test_every_op_is_checked() -> None:
    assert {param.values[0] for param in calls()} == set(OPS)
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastwhiten::")]
    stages = {
        name.removeprefix("fastwhiten::")
        for name in names
        if torch._C._get_schema(name, "").arguments  # those without any only report to info
    }
    of_python = {f"{backend}_{op}" for backend in ("native", "reference", "triton") for op in OPS}
    of_python |= {"blended_in", "population_matrix", "product"}
    of_tests = {name for name in stages if name.startswith("test_")}
    assert stages - of_python - of_tests == set(OPS)


def _x() -> Tensor:
    return torch.randn(8, 6)


WRONG = {
    "groups": ("statistics", (_x(), None, 4, False)),
    "dtype": ("statistics", (_x().long(), None, 1, False)),
    "weights": ("statistics", (_x(), torch.ones(7), 1, False)),
    "weights' dtype": ("statistics", (_x(), torch.ones(8).double(), 1, False)),
    "not contiguous": ("statistics", (torch.randn(6, 8).T, None, 1, False)),
    "four dimensions": ("statistics", (torch.randn(2, 3, 4, 5), None, 1, False)),
    "not square": ("eigh", (torch.randn(1, 3, 4),)),
    "start": ("eigh", (torch.eye(3).unsqueeze(0), torch.eye(3).double().unsqueeze(0))),
    "start of a factor": (
        "factor",
        (torch.eye(3).unsqueeze(0), None, None, 1.0, 1e-3, 0, torch.eye(4).unsqueeze(0)),
    ),
    "half eigh": ("eigh", (torch.randn(1, 3, 3).half(),)),
    "kind": ("factor", (torch.eye(3).unsqueeze(0), None, None, 1.0, 1e-3, 7)),
    "running": (
        "factor",
        (torch.eye(3).unsqueeze(0), torch.eye(4).unsqueeze(0), None, 0.5, 1e-3, 0),
    ),
    "rho": ("factor", (torch.eye(3).unsqueeze(0), None, torch.ones(2), 1.0, 1e-3, 0)),
    "mean": ("apply", (_x(), torch.ones(5), torch.eye(6).unsqueeze(0), None, None)),
    "matrix": ("apply", (_x(), torch.ones(6), torch.eye(5).unsqueeze(0), None, None)),
    "gamma": ("apply", (_x(), torch.ones(6), torch.eye(6).unsqueeze(0), torch.ones(5), None)),
    "grad": ("backward_reduce", (_x(), torch.ones(7, 6), torch.ones(6), 1)),
    "grad's dtype": ("backward_reduce", (_x(), torch.ones(8, 6).double(), torch.ones(6), 1)),
    "float64 rows": ("apply", (_x().double(), torch.ones(6), torch.eye(6)[None], None, None)),
    "float64 gradients": (
        "sample_backward",
        (
            _x().double(),
            torch.ones(1, 8, 6),
            torch.ones(1, 8),
            torch.eye(8)[None],
            *(None, None, 1.0),
        ),
    ),
    "float64 output": (
        "sample_apply",
        (_x(), torch.ones(1, 8), torch.eye(8)[None], None, None, 1.0, torch.float64),
    ),
    "planes on the sample side": ("sample_statistics", (torch.randn(2, 6, 2), None, 1, False)),
}


@pytest.mark.parametrize("name", WRONG)
def test_raw_ops_check_their_arguments(name: str) -> None:
    """Whoever calls the ops directly gets an exception, not memory that is not theirs."""
    op, arguments = WRONG[name]
    with pytest.raises(RuntimeError, match=op):
        getattr(torch.ops.fastwhiten, op)(*arguments)
