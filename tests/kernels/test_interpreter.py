"""The fast interpreter of the tests against Triton's own: same bits, same types, same errors."""

import re
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

import fastwhiten
from tests.helpers import interpreter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def both(run):
    """Return the results of ``run`` in Triton's interpreter, in the fast one, and there again."""
    plain = run()
    with interpreter.fast() as faster:
        assert faster
        return plain, run(), run()


def test_the_version_that_is_installed_is_the_one_it_knows() -> None:
    pinned = re.search(r"^triton==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and pinned[1] == interpreter.VERSION


def test_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interpreter.core.tensor.__init__
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    with interpreter.fast() as faster:
        assert not faster and interpreter.core.tensor.__init__ is before


def patched() -> list[object]:
    return [
        interpreter.core.tensor.__init__,
        interpreter.core.block_type.__init__,
        interpreter.core._unwrap_if_constexpr,
        interpreter.TritonSemantic.binary_op_type_checking_impl,
        interpreter.TritonSemantic.broadcast_impl_value,
        interpreter.interpreter._get_np_dtype,
        interpreter.interpreter._patch_lang,
        interpreter.interpreter.interpreter_builder.options,
        tl.load,
        tl.sum,
        tl.tensor.__add__,
    ]


def test_nothing_is_left_behind() -> None:
    before = patched()
    with pytest.raises(KeyError), interpreter.fast():
        fastwhiten.whiten(torch.randn(9, 3), backend="triton")
        assert all(a is not b for a, b in zip(before[:8], patched()[:8], strict=True))
        # A launch patches the language, and takes it back.
        assert all(a is b for a, b in zip(before[8:], patched()[8:], strict=True))
        raise KeyError
    assert all(a is b for a, b in zip(before, patched(), strict=True))


@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    [
        ((24, 6), "zca", torch.float32),
        ((24, 6), "pca", torch.float64),
        ((70, 67), "cholesky", torch.float32),  # two blocks of channels
        ((5, 14), "zca", torch.float64),  # the sample side
        ((3, 6, 5, 4), "cholesky", torch.bfloat16),
        ((3, 6, 5, 4), "zca", torch.float16),
    ],
    ids=str,
)
def test_whitening_has_the_same_bits(shape, kind, dtype) -> None:
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    groups = 2 if shape[1] % 2 == 0 else 1

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        y = fastwhiten.whiten(leaf, kind=kind, groups=groups, backend="triton")
        return y.detach(), torch.autograd.grad(y, leaf, grad)[0]

    plain, *fast = both(run)
    for result in fast:
        assert all(torch.equal(a, b) for a, b in zip(plain, result, strict=True))


@triton.jit
def rules_kernel(half, single, double, small, large, out, N: tl.constexpr):
    """Promotion, constants, broadcasts and reductions of every kind that the rules tell apart."""
    i = tl.arange(0, N)
    h, s, d = tl.load(half + i), tl.load(single + i), tl.load(double + i)
    n, m = tl.load(small + i), tl.load(large + i)
    tl.store(out + i, (h + s).to(tl.float64))
    tl.store(out + N + i, (h / tl.load(half + N - 1 - i)).to(tl.float64))
    tl.store(out + 2 * N + i, s * d)
    tl.store(out + 3 * N + i, (n + m).to(tl.float64))
    tl.store(out + 4 * N + i, (n * 3 - 1).to(tl.float64))
    tl.store(out + 5 * N + i, (2.5 * h).to(tl.float64))
    tl.store(out + 6 * N + i, (n // 3 + n % 3 + (n ^ 5)).to(tl.float64))
    tl.store(out + 7 * N + i, tl.where((s > 0.0) & (d < 0.5), s, h).to(tl.float64))
    square = s[:, None] * d[None, :] + i[None, :]
    tl.store(out + 8 * N + i, tl.sum(square, 0) + tl.max(square, 1) + tl.min(square, 0))
    tl.store(out + 9 * N + i, tl.sum(s, 0).to(tl.float64) + tl.sum(n, 0))
    tl.store(
        out + 10 * N + i, (s[None, :] + tl.full((1, 1), 1.0, tl.float32)).to(tl.float64).reshape(N)
    )
    tl.store(out + 11 * N + i, (s + tl.full((1, N), 2.0, tl.float64)).reshape(N))
    outer = tl.reshape(s[:, None] * s[None, :], (N * N,))
    tl.store(out + 13 * N + i, tl.sum(tl.reshape(outer, (N, N)), 0).to(tl.float64))
    tl.store(out + 12 * N + i, (s > d).to(tl.int32).to(tl.float64) + (n == m).to(tl.float64))


@pytest.mark.parametrize("n", [1, 2, 16])
def test_rules_of_the_language(n) -> None:
    values = torch.randn(n, dtype=torch.float64)
    whole = torch.randint(-100, 100, (n,))
    inputs = (values.half(), values.float() + 1, values, whole.int(), whole * 2**33)

    def run() -> torch.Tensor:
        out = torch.full((14, n), float("nan"), dtype=torch.float64)
        rules_kernel[(1,)](*inputs, out, N=n)
        return out

    plain, *fast = both(run)
    assert plain.isfinite().all()
    for result in fast:
        assert torch.equal(plain, result)


@triton.jit
def misfit_kernel(out, N: tl.constexpr, M: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, i + tl.arange(0, M))


@triton.jit
def pointers_kernel(out, N: tl.constexpr, M: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, (out + i) * (out + i))


@triton.jit
def odd_kernel(out, N: tl.constexpr, M: tl.constexpr):
    tl.store(out, tl.sum(tl.full((N, 3), 1, tl.int32)))


@pytest.mark.parametrize(
    "kernel", [misfit_kernel, pointers_kernel, odd_kernel], ids=lambda k: k.__name__
)
def test_what_is_wrong_stays_an_error(kernel) -> None:
    out = torch.zeros(16, dtype=torch.int32)

    def run() -> str:
        with pytest.raises(InterpreterError) as error:
            kernel[(1,)](out, N=16, M=8)
        return str(error.value)

    plain, *fast = both(run)
    assert fast == [plain, plain]
