"""A state_dict that does not fit says what it is, and how it is converted: the text runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import spectra

X = spectra.random(30, 8, 3)


def fitted(**options: Any) -> ChannelWhitening:
    layer = ChannelWhitening(8, dtype=torch.float64, **options)
    layer(spectra.random(40, 8))
    return layer.eval()


def converted(layer: ChannelWhitening, state: dict[str, Any], text: str) -> ChannelWhitening:
    """Do what the error says; in a model, so that the names have a prefix."""
    model = nn.Sequential(layer).eval()
    state = {f"0.{name}": t.clone() for name, t in state.items()}
    with pytest.raises(RuntimeError, match=text) as caught:
        model.load_state_dict(state)
    code = re.search(r"(state\['0.running_\w+'\] = .*?)(?: makes|$|\n|\")", str(caught.value))
    exec(code[1], {"torch": torch, "fastwhiten": fastwhiten, "state": state, "eps": layer.eps})
    model.load_state_dict(state)
    return layer


@pytest.mark.parametrize("running", ["covariance", "matrix"])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalisation(groups: int, running: str) -> None:
    norm = nn.BatchNorm1d(8, eps=1e-3, dtype=torch.float64)
    norm(spectra.random(40, 8))
    layer = ChannelWhitening(8, groups=groups, running=running, affine=True, dtype=torch.float64)
    converted(layer, norm.state_dict(), "the state of a batch normalisation")
    torch.testing.assert_close(layer(X), norm.eval()(X))


def test_a_matrix_from_a_covariance() -> None:
    source = fitted()
    layer = ChannelWhitening(8, running="matrix", dtype=torch.float64)
    converted(layer, source.state_dict(), "a layer with running='covariance'")
    torch.testing.assert_close(layer(X), source(X))


def test_no_covariance_from_a_matrix() -> None:
    state = fitted(running="matrix").state_dict()
    with pytest.raises(RuntimeError, match="running='matrix'; the covariance cannot be had"):
        ChannelWhitening(8, dtype=torch.float64).load_state_dict(state)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 2), (2, 1)])
def test_other_groups(before: int, after: int) -> None:
    source = fitted(groups=before)
    layer = converted(
        ChannelWhitening(8, groups=after, dtype=torch.float64),
        source.state_dict(),
        f"a layer with groups={before}; construct it with groups={before}, or",
    )
    dense, blocks = (torch.block_diag(*m.running_cov) for m in (source, layer))
    size = 8 // max(before, after)
    mask = torch.block_diag(*torch.ones(8 // size, size, size))
    assert torch.equal(dense * mask, blocks * mask)
    assert after > before or torch.equal(blocks, dense)


def test_what_is_unknown_is_left_to_pytorch() -> None:
    layer = ChannelWhitening(8)
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(ChannelWhitening(6).state_dict())
    assert "this is the state of" not in str(caught.value)
    layer.load_state_dict(nn.BatchNorm1d(8, affine=False).state_dict(), strict=False)
    ChannelWhitening(8, track_running_stats=False).load_state_dict({})
