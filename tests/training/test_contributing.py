"""CONTRIBUTING's steps, followed in a copy of the recipe: a loss, a sampler and a data set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.config import Stage2Config, TrainConfig, validate
from training.config.datasets import DATASETS
from training.config.loss import LOSS_OPTIONS
from training.config.sampler import SAMPLERS
from training.config.stage2 import check_stage2
from training.data import _LOADERS, build_dataset
from training.errors import ConfigError
from training.losses.build import LOSSES, build_loss
from training.samplers.build import STREAMS, build_sampler

REPOSITORY = Path(__file__).parents[2]
LOSS = """
from torch.nn import functional

from training.losses.base import ClassificationLoss


class Hinge(ClassificationLoss):
    def per_row(self, logits, labels, batch_kind):
        return functional.multi_margin_loss(logits, labels, reduction="none")
"""
DATASET = """
import numpy as np

from training.data.resident import Arrays, resident_dataset


def load_noise(data, seed, check_files):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 3, 8, 8), dtype=np.uint8)
    part = Arrays(images, np.arange(80) % 4)
    return resident_dataset("noise", ("a", "b", "c", "d"), part, part, data, seed)
"""


def _add(path: Path, line: str, lines: str) -> None:
    """Put lines after the only line that starts so."""
    before, found, after = path.read_text().partition(f"\n{line}")
    assert found and f"\n{line}" not in after
    rest, _, end = after.partition("\n")
    path.write_text(f"{before}{found}{rest}\n{lines}\n{end}")


@pytest.mark.slow
def test_the_steps_as_they_are_written(tmp_path: Path):
    root = tmp_path / "training"
    shutil.copytree(REPOSITORY / "training", root)
    (root / "losses" / "hinge.py").write_text(LOSS)
    _add(root / "config" / "loss.py", "LOSS_OPTIONS", '    "hinge": (),')
    build = root / "losses" / "build.py"
    _add(build, "from training.losses.margins", "from training.losses.hinge import Hinge")
    _add(build, '    "ce":', '    "hinge": lambda config, counts, sampler: Hinge(),')
    names = root / "config" / "sampler.py"
    names.write_text(names.read_text().replace("SAMPLERS = (", 'SAMPLERS = ("flat", '))
    rule = '    "flat": by_class(lambda counts, epoch, epochs: 0 * counts + 1 / len(counts)),'
    _add(root / "samplers" / "build.py", "STREAMS", rule)
    (root / "data" / "noise.py").write_text(DATASET)
    _add(root / "config" / "datasets.py", "DATASETS", '    "noise": Defaults(natural=True),')
    loaders = root / "data" / "__init__.py"
    _add(loaders, "from training.data.fashion", "from training.data.noise import load_noise")
    _add(loaders, "_LOADERS:", '    "noise": load_noise,')

    arguments = "train --loss hinge --sampler flat --dataset noise --optim.epochs 1 --model.width 4"
    options = "--data.batch_size 16 --output.plots false --output.loggers []"
    more = ["--data.validation_per_class", "2", "--output.name", "run"]
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])  # of the latter, only fastwhiten
    done = subprocess.run(
        [sys.executable, "-m", "training", *arguments.split(), *options.split(), *more],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert (summary["loss"], summary["dataset"]) == ("hinge", "noise")
    assert summary["class_counts"] == [18] * 4


def test_every_name_is_in_both_tables():
    assert set(LOSSES) == set(LOSS_OPTIONS)
    assert {"instance", *STREAMS} == set(SAMPLERS)
    assert set(_LOADERS) == set(DATASETS)


@pytest.mark.parametrize("option", ["loss", "sampler", "dataset", "whitening"])
def test_an_unknown_name_says_which_there_are(option: str):
    with pytest.raises(ConfigError, match=f"{option}: expected a value out of .*, got 'mine'"):
        validate(TrainConfig(**{option: "mine"}))


def test_a_line_that_was_forgotten_in_the_second_table_is_told():
    """The first table is enough for the command line to take the name."""
    labels = torch.tensor([0, 1])
    with pytest.raises(
        ConfigError, match=r"loss: expected a value out of .* \(LOSSES\), got 'mine'"
    ):
        build_loss(TrainConfig(loss="mine"), labels)
    with pytest.raises(ConfigError, match=r"sampler: .* \(STREAMS\), got 'mine'"):
        build_sampler(TrainConfig(sampler="mine"), labels, 0)
    with pytest.raises(ConfigError, match=r"dataset: .* \(_LOADERS\), got 'mine'"):
        build_dataset(TrainConfig(dataset="mine"), 0)


def test_an_unknown_method_says_which_there_are():
    with pytest.raises(ConfigError, match="method: expected a value out of crt, lws"):
        check_stage2(Stage2Config(method="mine", run="folder"))
