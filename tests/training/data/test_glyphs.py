"""glyphs-lt: the list of fonts, the rendering, and the reader, on matplotlib's fonts."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from training.config import TrainConfig
from training.data import build_dataset, make_glyphs
from training.data.base import Split
from training.data.glyphs import CLASSES
from training.errors import ConfigError

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
PARTS = {"DejaVuSans.ttf": "train", "DejaVuSans-Bold.ttf": "train", "DejaVuSerif.ttf": "test"}


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of three fonts, as glyph_fonts.csv."""
    path = tmp_path_factory.mktemp("fonts") / "fonts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "package", "file", "sha256"])
        for name, part in PARTS.items():
            digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
            writer.writerow([part, "fonts-dejavu-core", name, digest])
    return path


@pytest.fixture
def glyphs(fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(make_glyphs, "FONTS", fonts)
    output = tmp_path / "glyphs"
    assert make_glyphs.main(["--output", str(output), "--fonts", str(FOLDER)]) == 0
    return output


def test_no_package_of_fonts_and_no_file_is_in_both_parts():
    rows = make_glyphs.listed_fonts()
    sides = {p: {r["package"] for r in rows if r["part"] == p} for p in ("train", "test")}
    assert not sides["train"] & sides["test"]
    assert len({row["sha256"] for row in rows}) == len(rows)
    assert {p: sum(r["part"] == p for r in rows) for p in sides} == {"train": 226, "test": 76}


def test_what_is_rendered_is_what_is_read_and_the_same_every_time(
    glyphs: Path, tmp_path: Path, data_config: Callable[..., TrainConfig]
):
    config = data_config("glyphs-lt", glyphs, imbalance_factor=1, validation_per_class=0)
    dataset = build_dataset(config, 0)
    assert dataset.class_names == tuple(CLASSES) and len(CLASSES) >= 100
    assert dataset.class_counts.tolist() == [2] * len(CLASSES)
    assert isinstance(dataset.train, Split) and isinstance(dataset.test, Split)
    assert torch.bincount(dataset.test.labels).tolist() == [1] * len(CLASSES)
    images = dataset.test.images
    assert images.shape[1:] == (1, 32, 32)
    assert images.amax((1, 2, 3)).min() > 128  # every class draws something
    assert len(images.flatten(1).unique(dim=0)) == len(CLASSES)  # and none the same
    edge = torch.cat([images[..., 0], images[..., -1]], dim=2)
    assert edge.max() == 0  # nothing is cut off on the left or right
    again = tmp_path / "again"
    make_glyphs.main(["--output", str(again), "--fonts", str(FOLDER)])
    for path in glyphs.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_each_image_is_moved_in_its_own_way():
    font = make_glyphs.ImageFont.truetype(str(FOLDER / "DejaVuSans.ttf"), 96)
    drawn = [np.asarray(make_glyphs.draw("+", font, np.random.default_rng(n))) for n in range(40)]
    rows, columns = np.indices((32, 32))
    centres = np.array([[(d * g).sum() / d.sum() for g in (rows, columns)] for d in drawn])
    assert np.abs(centres - 15.5).max() < 2.0 + 0.3  # pixels; of a symmetric sign
    assert centres.std(0).min() > 0.8  # uniform in +-2 has 1.15
    mass = np.array([d.sum() for d in drawn])
    assert 1.2 < mass.max() / mass.min() < (1.1 / 0.85) ** 2 * 1.1


def test_missing_fonts_and_damaged_images_are_named(
    glyphs: Path, tmp_path: Path, data_config: Callable[..., TrainConfig]
):
    with pytest.raises(ConfigError, match=r"DejaVuSans.ttf; .*apt-get install fonts-dejavu-core"):
        make_glyphs.find_fonts(make_glyphs.listed_fonts(), tmp_path)
    (tmp_path / "DejaVuSans.ttf").write_bytes(b"another version")
    with pytest.raises(ConfigError, match=r"another version, for instance DejaVuSans.ttf"):
        make_glyphs.find_fonts(make_glyphs.listed_fonts(), tmp_path)
    path = glyphs / "test-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes((glyphs / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ConfigError, match="render the glyphs again"):
        build_dataset(data_config("glyphs-lt", glyphs), 0)
    path.write_bytes(content)
    (glyphs / "glyphs.json").unlink()
    with pytest.raises(ConfigError, match=r"training.data.make_glyphs --output"):
        build_dataset(data_config("glyphs-lt", glyphs), 0)
