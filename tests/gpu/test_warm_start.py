"""The last step's eigenvectors as a start of the CUDA eigensolvers: same result, fewer sweeps."""

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE
from tests.helpers import spectra

pytestmark = pytest.mark.cuda_only


@pytest.mark.parametrize("size", [8, 16, 64, 128])  # a warp, a block, one-sided
def test_a_start_saves_sweeps(size: int) -> None:
    old, new = (spectra.random(4 * size, size, seed).to(DEVICE) for seed in (0, 1))
    before = (old.mT @ old / len(old)).float()
    after = 0.9 * before + 0.1 * (new.mT @ new / len(new)).float()
    start = fastwhiten.symmetric_eigh(before, backend="native")[1]
    cold = fastwhiten.symmetric_eigh_sweeps(after, backend="native")
    warm = fastwhiten.symmetric_eigh_sweeps(after, start=start, backend="native")
    assert 0 < warm < cold
    values, vectors = fastwhiten.symmetric_eigh(after, start=start, backend="native")
    # 32 roundings of float32 per dimension's root, as much as Jacobi from scratch is allowed.
    tolerance = 32 * 6e-8 * size**0.5 * values[-1].item()
    assert torch.dist(vectors * values @ vectors.mT, after) < tolerance


def test_the_layer_keeps_its_basis_on_the_device() -> None:
    layer = ChannelWhitening(32, batch_weight=0.3, device=DEVICE)
    layer(spectra.random(256, 32, 2).to(DEVICE, torch.float32))
    basis = layer.last_basis
    assert basis is not None and basis.device.type == DEVICE.type
    identity = torch.eye(32, device=DEVICE)
    assert torch.dist(basis[0].mT @ basis[0], identity) < 1e-4
    assert torch.dist(basis[0], identity) > 0.1  # it has been remembered
