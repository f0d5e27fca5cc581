"""Out-of-distribution scores where the answer is known, and the command on a run."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import norm

from training.commands.diagnose import run_diagnose
from training.config import TrainConfig
from training.config.commands import DiagnoseConfig
from training.data import build_dataset
from training.errors import ConfigError
from training.evaluation import ood
from training.evaluation.inspection import Inspection
from training.models.whitening import build_whitening
from training.report.report import ood_tables
from training.runs.folder import RunFolder

SIZE, CLASSES = 8, 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folders of two classes of coloured images of 20 x 16 pixels, six of each to test on."""
    rng = np.random.default_rng(0)
    for name in ("train/ant", "train/bee", "test/ant", "test/bee"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def _gaussian(rows: int, seed: int, scale: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, SIZE, generator=generator, dtype=torch.float64) * scale


def test_auroc_and_rate_of_two_normal_distributions_are_their_formulas():
    inside, outside = (
        _gaussian(20_000, 0, torch.ones(SIZE))[:, 0],
        2 + _gaussian(20_000, 1, torch.ones(SIZE))[:, 0],
    )
    assert ood.auroc(inside, outside) == pytest.approx(norm.cdf(2 / math.sqrt(2)), abs=0.005)
    expected = norm.cdf(norm.ppf(0.95) - 2)
    assert ood.false_positive_rate(inside, outside) == pytest.approx(expected, abs=0.01)


def test_every_distance_is_its_formula():
    """Against explicit inverses in numpy."""
    scale = torch.logspace(0, -2, SIZE, dtype=torch.float64)
    labels = torch.arange(300) % CLASSES
    means = 2 * _gaussian(CLASSES, 2, torch.ones(SIZE))
    train, other = means[labels] + _gaussian(300, 3, scale), _gaussian(20, 4, torch.ones(SIZE))
    layer = build_whitening("eager", SIZE, TrainConfig().whitening_options).double()
    covariance = np.cov(train.numpy().T, bias=True)
    layer.running_mean.copy_(train.mean(0))
    layer.running_cov.copy_(torch.from_numpy(covariance)[None])
    layer.eval()
    views = [
        Inspection("", x, layer(x), torch.zeros(len(x), CLASSES), labels[: len(x)])
        for x in (train, other)
    ]
    found = ood.scores(*views, has_layer=True)

    def nearest(x: np.ndarray, centres: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        gaps = x[:, None] - centres  # [N, K, D]
        return np.einsum("nkd,de,nke->nk", gaps, inverse, gaps).min(1)

    def ridge(c: np.ndarray) -> np.ndarray:
        return np.linalg.inv(c + ood.RIDGE * np.trace(c) / SIZE * np.eye(SIZE))

    t, x = train.numpy(), other.numpy()
    groups = [t[labels.numpy() == k] for k in range(CLASSES)]
    inverse = np.linalg.inv(covariance + 1e-3 * np.eye(SIZE))
    expected = nearest(x, np.stack([g.mean(0) for g in groups]), inverse)
    np.testing.assert_allclose(found["mahalanobis_layer"], expected, rtol=1e-9)
    raw = [nearest(x, g.mean(0)[None], ridge(np.cov(g.T, bias=True))) for g in groups]
    np.testing.assert_allclose(found["mahalanobis_raw"], np.min(raw, axis=0), rtol=1e-8)
    t, x = (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (t, x))
    groups = [t[labels.numpy() == k] for k in range(CLASSES)]
    pooled = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups) / 300
    expected = nearest(x, np.stack([g.mean(0) for g in groups]), ridge(pooled))
    np.testing.assert_allclose(found["mahalanobis_pooled"], expected, rtol=1e-8)


def test_what_lies_in_a_direction_of_little_variance_is_found_by_the_covariance_alone():
    scale = torch.ones(SIZE, dtype=torch.float64)
    scale[-1] = 0.01
    labels = torch.zeros(2000, dtype=torch.int64)
    own, foreign = 5 + _gaussian(2000, 5, scale), 5 + _gaussian(500, 6, scale)
    foreign[:, -1] += 0.1  # ten standard deviations, a tenth of one of the others
    mean = ood.class_means(own, labels)
    plain = [ood.nearest_mean_distance(x, mean) for x in (own, foreign)]
    assert ood.auroc(*plain) == pytest.approx(0.5, abs=0.03)
    shared = [ood.raw_distance(x, own, labels) for x in (own, foreign)]
    assert ood.auroc(*shared) > 0.95


def test_a_class_of_one_image_has_no_covariance_and_is_left_out():
    train = torch.cat([_gaussian(50, 7, torch.ones(SIZE)), torch.full((1, SIZE), 9.0)])
    labels = torch.cat([torch.zeros(50), torch.ones(1)]).long()
    assert ood.raw_distance(train[-1:], train, labels).item() > 100


def test_foreign_images_become_like_the_runs_own(images: Path):
    own = build_dataset(TrainConfig(), 0)  # 8 x 8, grey, white is 16
    found = ood.foreign_split("cifar10-jpeg-lt", str(images), own)
    assert found.images.shape == (12, 1, 8, 8) and found.images.dtype == torch.uint8
    for image, path in zip(found.images, sorted((images / "test").glob("*/*")), strict=True):
        with Image.open(path) as source:  # pillow's grey and its filter are near to torch's
            grey = source.convert("L").resize((8, 8), Image.Resampling.BILINEAR)
        expected = np.asarray(grey) * (16 / 255)
        assert np.abs(image[0].numpy() - expected).max() < 1
    with pytest.raises(ConfigError, match="another data set than the run's"):
        ood.foreign_split("digits-lt", None, own)


@pytest.mark.slow
def test_the_command_writes_it_beside_the_other_diagnostics(
    trained: Path, tmp_path: Path, images: Path
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    console = Console(file=io.StringIO(), width=120)
    config = DiagnoseConfig(
        run=str(folder),
        hessian_rows=100,
        ood="cifar10-jpeg-lt",
        ood_root={"cifar10-jpeg-lt": str(images)},
    )
    run_diagnose(config, console)
    written = json.loads((folder / "diagnostics" / "last-test.json").read_text())
    found = written["ood"]["cifar10-jpeg-lt"]
    assert found.pop("images") == 12
    assert set(found) == {
        "max_softmax",
        "mahalanobis_layer",
        "mahalanobis_pooled",
        "mahalanobis_raw",
    }
    assert "Mahalanobis, layer" in console.file.getvalue()
    rate = f"<td>{100 * found['mahalanobis_pooled']['auroc']:.1f}</td>"
    shown = ood_tables(RunFolder(folder))
    assert shown.count("<tr>") == 1 + 4 and rate in shown and "cifar10-jpeg-lt" in shown
    run_diagnose(DiagnoseConfig(run=str(folder), hessian_rows=100), console)
    again = json.loads((folder / "diagnostics" / "last-test.json").read_text())
    assert (
        again["ood"].keys() == written["ood"].keys()
    )  # of the same checkpoint: what was found before stays
