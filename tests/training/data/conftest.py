"""Small files in each format, written as their publishers write them."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.config import TrainConfig
from training.config.data import DataConfig


def _labels(per_class: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))


def _idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    """Four gzipped IDX files: 20 training and 3 test images per class."""
    root = tmp_path / "fashion"
    root.mkdir()
    rng = np.random.default_rng(0)
    for part, per_class in (("train", 20), ("t10k", 3)):
        labels = _labels(per_class, 10, per_class).astype(np.uint8)
        images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (root / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(_idx(array)))
    return root


def _write_batch(path: Path, images: np.ndarray, labels: np.ndarray, key: str) -> None:
    content = {"data": images, key: labels.tolist(), "batch_label": path.name}
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def cifar10_root(tmp_path: Path) -> Path:
    """The folder that holds cifar-10-batches-py: 5 x 4 training and 3 test images per class."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = _labels(3 if name == "test_batch" else 4, 10, number)
        images = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        _write_batch(folder / name, images, labels, "labels")
    names = {"label_names": [f"class {k}" for k in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder.parent


@pytest.fixture
def cifar100_root(tmp_path: Path) -> Path:
    """The folder cifar-100-python itself: 10 training images and 1 test image per class."""
    folder = tmp_path / "cifar100"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, per_class in (("train", 10), ("test", 1)):
        labels = _labels(per_class, 100, per_class)
        images = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        _write_batch(folder / name, images, labels, "fine_labels")
    names = {"fine_label_names": [f"fine {k}" for k in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


@pytest.fixture
def write_images() -> Callable[..., list[str]]:
    """Write ``count`` JPEGs into a folder; return their names."""

    def write(folder: Path, count: int, size: tuple[int, int] = (20, 16), seed: int = 0) -> list:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, len(folder.name), *folder.name.encode()])
        names = []
        for number in range(count):
            coarse = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            names.append(f"{number:04}.jpg")
            image.save(folder / names[-1], quality=90)
        return names

    return write


@pytest.fixture
def image_root(tmp_path: Path, write_images: Callable[..., list[str]]) -> Path:
    """Train and test folders of 4 classes: 12 training and 3 test images each."""
    root = tmp_path / "images"
    for name in ("ant", "bee", "cat", "dog"):
        write_images(root / "train" / name, 12)
        write_images(root / "test" / name, 3, seed=1)
    return root


@pytest.fixture
def data_config() -> Callable[..., TrainConfig]:
    """Return a configuration of a data set: ``data_config("cifar10-lt", root, cutout=4)``."""

    def build(
        dataset: str, root: Path, imbalance_factor: float | None = 4, **data: Any
    ) -> TrainConfig:
        return TrainConfig(
            dataset=dataset,
            imbalance_factor=imbalance_factor,
            data=DataConfig(root=str(root), **data),
        )

    return build
