"""benchmarks.reproduce: both loops are given the same task, and the verdict is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import reproduce
from training.data.longtail import Cut, published_split


def test_the_split_is_the_recipe_s():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000))
    kept = reproduce.long_tail(labels, 100)
    counts = [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert np.bincount(labels[kept]).tolist() == counts
    cut = Cut(100.0, "exp", None)
    theirs = published_split(
        labels, cut=cut, seed=0, validation_per_class=100, validation_from="dropped"
    )
    assert sorted(kept) == sorted(theirs.train)


def test_the_preset_says_what_the_loop_does(tmp_path: Path):
    config = reproduce.recipe_config(str(tmp_path), 4, 3, "ce", str(tmp_path))
    optim = config.optim
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.1, 0.9, 5e-4)
    assert (optim.warmup_epochs, optim.warmup_unit, optim.schedule) == (2, "step", "cosine")
    assert (optim.nesterov, optim.decay_all, optim.cosine_unit) == (False, True, "step")
    assert (config.data.batch_size, config.data.drop_last) == (128, True)
    assert (config.whitening, config.imbalance_factor, config.seed) == ("none", 100, 4)
    assert (config.model.name, config.model.width, config.model.blocks) == ("small-resnet", 16, 1)


@pytest.mark.parametrize(("shift", "status"), [(0.0, 0), (0.1, 1)])
def test_a_difference_is_an_error(
    shift: float,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(reproduce, "plain", lambda root, seed, *rest: 0.8 + 0.01 * seed)
    monkeypatch.setattr(
        reproduce, "recipe", lambda root, seed, *rest: 0.8 + 0.01 * (2 - seed) + shift
    )
    assert reproduce.main(["--seeds", "3"]) == status
    # Differences .02, 0 and -.02: t is 4.303, the standard error .02 / sqrt(3).
    assert f"recipe - plain: {shift:+.4f} +- 0.0497 (95 %, n = 3)" in capsys.readouterr().out
