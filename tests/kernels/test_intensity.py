"""Shrinkage intensities of the Triton kernels, against their definitions in float64."""

import pytest
import torch

from fastwhiten.backends import reference, triton
from tests.helpers import plain, spectra

pytestmark = pytest.mark.interpret

METHODS = {"oas": reference.OAS, "ledoit-wolf": reference.LEDOIT_WOLF}
# (rows, channels, groups, length of a plane or 0): tiles that are not full, several of them, groups
SHAPES = [(7, 3, 1, 0), (150, 40, 2, 0), (6 * 35, 12, 3, 35), (700, 70, 1, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", ["", "weighted and blended"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_intensity(shape, method: str, options: str, dtype: torch.dtype) -> None:
    rows, channels, groups, length = shape
    spread = torch.linspace(0.5, 2.0, channels)  # nothing is clamped to 1 that should not be
    x = (spectra.random(rows, channels) * spread + 3.0).to(dtype)
    t = torch.float64 if dtype == torch.float64 else torch.float32
    p = torch.linspace(0.5, 1.5, rows, dtype=torch.float64)
    p /= p.sum()
    running, weight, share = None, None, 1.0
    if options:
        running = (torch.eye(channels // groups) + 0.1).to(t).repeat(groups, 1, 1)
        weight, share = p.to(t), 0.4
    laid = x.reshape(-1, length, channels).mT.contiguous() if length else x
    mean, covariance = reference.statistics(laid, weight, groups, False)
    arguments = (covariance, running, weight, share, METHODS[method], 0.0)
    ours = triton.intensity(laid, mean, *arguments)
    assert ours.shape == (groups,) and ours.dtype == t
    p = p if options else torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    for g, part in enumerate(x.double().chunk(groups, 1)):
        centered = part - p @ part
        batch = (centered * p[:, None]).T @ centered
        old = 0.0 if running is None else (1 - share) * running[g].double()
        truth = plain.intensity(method, share * batch + old, batch, centered, p, share)
        # Sums of positive terms, then differences that cost a digit or two.
        assert float(ours[g]) == pytest.approx(truth, rel=2e3 * torch.finfo(t).eps)


@pytest.mark.parametrize("method", METHODS)
def test_white_data_are_shrunk_fully_and_others_never_beyond(method: str) -> None:
    """0 / 0 is 1; four rows of three channels have an estimate above 1."""
    mean, identity = torch.zeros(3), torch.eye(3).unsqueeze(0)
    x = spectra.hadamard(8, 3).float().contiguous()
    assert triton.intensity(x, mean, identity, None, None, 1.0, METHODS[method], 0.0) == 1.0
    x = spectra.random(4, 3).float()
    arguments = (x, *reference.statistics(x, None, 1, False), None, None, 1.0)
    assert 0.0 < triton.intensity(*arguments, METHODS[method], 0.0) <= 1.0


def test_fixed_and_wrong_methods() -> None:
    x = torch.randn(8, 4)
    arguments = (x, *reference.statistics(x, None, 2, False), None, None, 1.0)
    assert triton.intensity(*arguments, reference.FIXED, 0.25).tolist() == [0.25, 0.25]
    with pytest.raises(ValueError, match=r"expected method 1 \(fixed\), 2 \(OAS\) or 3 .*, got 9"):
        triton.intensity(*arguments, 9, 0.0)
    with pytest.raises(ValueError, match=r"intensity: expected mean contiguous \[4\]"):
        triton.intensity(x, torch.zeros(3), *arguments[2:], reference.OAS, 0.0)
