"""What users write with the public names: `make lint` types it strictly, test_docs.py runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastwhiten


def functions(x: Tensor) -> Tensor:
    y: Tensor = fastwhiten.whiten(x, kind="cholesky", groups=2, eps=1e-3, shrinkage="oas")
    mean, covariance = fastwhiten.batch_statistics(x, groups=2, statistics_dtype=torch.float64)
    matrix: Tensor = fastwhiten.whitening_matrix(covariance, kind="zca")
    eigenvalues, vectors = fastwhiten.symmetric_eigh(covariance, start=None)
    sweeps: Tensor = fastwhiten.symmetric_eigh_sweeps(covariance, start=vectors)
    root: Tensor = fastwhiten.matrix_power(covariance, 0.5, start=vectors)
    parts = (y, mean, matrix, eigenvalues, sweeps, root)
    return torch.stack([part.double().sum() for part in parts])


def layer(x: Tensor) -> nn.Module:
    whitening = fastwhiten.ChannelWhitening(
        x.shape[1], groups=2, momentum=None, running="covariance", process_group=None
    )
    model = nn.Sequential(whitening, nn.Linear(x.shape[1], 2))
    model(x).sum().backward()
    y: Tensor = whitening(x, sample_weight=torch.ones(len(x)))
    assert y.shape == x.shape and whitening.running_mean is not None
    fastwhiten.update_statistics(model, [x, x])
    return fastwhiten.ChannelWhitening.convert_sync(model, None)


def others_models(x: Tensor) -> nn.Linear:
    model = nn.Sequential(nn.Linear(x.shape[1], 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    replaced = fastwhiten.replace_batchnorm(model, "1", group_size=4)
    assert list(replaced.layers) == ["1"]
    put_in = fastwhiten.whiten_classifier_input(model, classifier="2", channel_dim=-1)
    model(x)
    layer: fastwhiten.ChannelWhitening = put_in.layer
    put_in.undo()
    last = model[2]
    assert isinstance(last, nn.Linear)
    return fastwhiten.fold_into_linear(layer.eval(), last)


def whitener(x: Tensor) -> fastwhiten.ChannelWhitening:
    def batches() -> Iterator[Tensor]:
        yield from x.chunk(2)

    first = fastwhiten.Whitener(kind="zca", eps=1e-3, ddof=1).fit(batches())
    rows: np.ndarray[Any, Any] = first.merge(fastwhiten.Whitener().fit(x)).transform(x.numpy())
    back: Tensor = first.inverse_transform(torch.from_numpy(rows))
    assert back.shape == x.shape
    return fastwhiten.ChannelWhitening.from_whitener(first, dtype=torch.float32)


VERSION: str = fastwhiten.__version__
