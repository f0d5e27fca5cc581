"""On a GPU, ``set_float32_matmul_precision("high")`` costs whitening no bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastwhiten
from tests.gpu.device import DEVICE
from tests.helpers import plain, spectra

# (300, 256): a wide group; (128, 64): the reference's products; (100, 300): the sample side
CASES = [((300, 256), "native"), ((300, 256), "triton"), ((300, 256), "reference")]
CASES += [((128, 64), "reference"), ((100, 300), "native"), ((100, 300), "triton")]
CASES += [((100, 300), "reference"), ((600, 200), "native")]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
@pytest.mark.parametrize(("shape", "backend"), CASES)
def test_tf32_changes_no_bit(shape: tuple[int, int], backend: str, kind: str) -> None:
    """The same kernels on the same input, so the same bits."""
    x, grad = (spectra.random(*shape, seed).to(DEVICE, torch.float32) for seed in (0, 5))
    options = {"backend": backend, "kind": kind}
    expected = plain.value_and_grad(fastwhiten.whiten, x, grad, **options)
    torch.set_float32_matmul_precision("high")
    found = plain.value_and_grad(fastwhiten.whiten, x, grad, **options)
    assert torch.get_float32_matmul_precision() == "high"
    for value, same in zip(found, expected, strict=True):
        assert torch.equal(value, same)


@pytest.mark.cuda_only
def test_tf32_is_on_outside() -> None:
    """Or the tests above compare nothing: ten bits of the mantissa, so errors above 1e-5."""
    a = torch.randn(512, 512, device=DEVICE)
    torch.set_float32_matmul_precision("high")
    product = a @ a
    exact = a.double() @ a.double()
    assert (product - exact).norm() / exact.norm() > 1e-5
