"""Fewer rows than channels: how far outputs in training and in evaluation are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastwhiten

from . import memory
from .scenes import Scene

ROWS, CHANNELS, STEPS = 32, 256, 100
# The layer as it is, then the ways out.
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "running=matrix": {"running": "matrix"},
    "shrinkage=oas": {"shrinkage": "oas"},
    "batch_weight=0.1": {"batch_weight": 0.1},
    "batch_weight=0.02": {"batch_weight": 0.02},
    "groups=16": {"groups": 16},
    "512 rows": {},
}


@pytest.mark.filterwarnings("ignore:ChannelWhitening. training on:RuntimeWarning")
@pytest.mark.parametrize("options", OPTIONS)
def bench_few_rows(benchmark: Any, options: str, device: str) -> None:
    """Time a step of training; `extra_info` holds the outputs' standard deviations."""
    rows = 512 if options == "512 rows" else ROWS
    # One stream, cut into batches: all have the same covariance.
    stream = Scene("", (STEPS * rows, CHANNELS), 1, 0).input(device=device)
    layer = fastwhiten.ChannelWhitening(CHANNELS, **OPTIONS[options]).to(device)
    for batch in stream.split(rows):
        trained = layer(batch).std()
    layer.eval()
    evaluated = layer(stream).std()
    layer.train()
    benchmark.group = f"({ROWS}, {CHANNELS}) with fewer rows than channels"
    benchmark.extra_info.update(
        options=options, training=float(trained), evaluation=float(evaluated)
    )
    x = stream[:rows].clone().requires_grad_()
    grad = torch.ones_like(x)

    def step(x: torch.Tensor) -> object:
        return torch.autograd.grad(layer(x), x, grad)

    memory.repeat(benchmark, step, lambda: ((x,), {}), device)
