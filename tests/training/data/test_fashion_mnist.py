"""fashion-mnist-lt from small IDX files, and from Debian's package where it is installed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import TrainConfig
from training.config.data import DataConfig
from training.data import build_dataset
from training.errors import ConfigError

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_package = pytest.mark.skipif(
    not _DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def load(config: TrainConfig):
    with pytest.warns(UserWarning, match="another number of images, and is used as it is"):
        return build_dataset(config, split_seed=99)


def test_small_files(fashion_root, data_config):
    data = load(data_config("fashion-mnist-lt", fashion_root, validation_per_class=2))
    # 20 * 4^(-k/9), rounded down
    assert data.class_counts.tolist() == [20, 17, 14, 12, 10, 9, 7, 6, 5, 5]
    assert data.train.images.shape == (105, 1, 28, 28)
    assert data.split_seed == 0  # the published protocol's, whatever the run's seed
    raw = gzip.decompress((fashion_root / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(
        gzip.decompress((fashion_root / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8
    )[8:]
    for split in (data.train, data.validation):
        assert np.array_equal(split.images[:, 0].numpy(), images[split.indices])
        assert np.array_equal(split.labels.numpy(), labels[split.indices])
    assert torch.bincount(data.test.labels).tolist() == [3] * 10


def test_files_without_gzip(fashion_root, data_config):
    expected = load(data_config("fashion-mnist-lt", fashion_root, validation_per_class=2))
    for path in list(fashion_root.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    data = load(data_config("fashion-mnist-lt", fashion_root, validation_per_class=2))
    assert torch.equal(data.train.images, expected.train.images)


def test_another_split_seed_is_another_split(fashion_root, data_config):
    config = data_config("fashion-mnist-lt", fashion_root, validation_per_class=2)
    first = load(config)
    config.seeds.split = 99
    second = load(config)
    assert second.split_seed == 99
    assert not torch.equal(first.train.indices, second.train.indices)


def _change(path: Path, change) -> None:
    path.write_bytes(gzip.compress(bytes(change(bytearray(gzip.decompress(path.read_bytes()))))))


def _set(content: bytearray, position: int, value: int) -> bytearray:
    content[position] = value
    return content


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3", lambda c: c[:-5], "expected 156800 bytes after the header"),
        ("train-images-idx3", lambda c: _set(c, 3, 1), "images and labels are not swapped"),
        ("t10k-images-idx3", lambda c: _set(c, 2, 13), "which starts with 00000803"),
        ("train-images-idx3", lambda c: c[:9], "expected a header of 16 bytes, got 9"),
        ("t10k-images-idx3", lambda c: c[:0], "got an empty file"),
        ("train-labels-idx1", lambda c: _set(c, 8, 10), "expected labels 0 to 9"),
        ("t10k-labels-idx1", lambda c: c[:7] + b"\5" + c[8:13], "expected 30 labels"),
        ("t10k-images-idx3", lambda c: c[:11] + b"\7" + c[12:15] + b"\x70" + c[16:], "28 x 28"),
    ],
)
def test_a_wrong_file_is_named(fashion_root, data_config, name, change, message):
    path = fashion_root / f"{name}-ubyte.gz"
    _change(path, change)
    with pytest.raises(ConfigError, match=message) as error:
        build_dataset(data_config("fashion-mnist-lt", fashion_root), split_seed=0)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("name", _FILES)
def test_missing_truncated_and_corrupt_files_are_named(fashion_root, data_config, name):
    path = fashion_root / f"{name}-ubyte.gz"
    config = data_config("fashion-mnist-lt", fashion_root)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ConfigError, match=r"truncated or corrupt .*fetch") as error:
        build_dataset(config, split_seed=0)
    assert path.name in str(error.value)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(ConfigError) as error:
        build_dataset(config, split_seed=0)
    assert path.name in str(error.value)
    path.unlink()
    with pytest.raises(ConfigError, match=r"found none; install Debian's package") as error:
        build_dataset(config, split_seed=0)
    assert path.name in str(error.value)


def test_verify_true_wants_the_published_files(fashion_root, data_config):
    config = data_config("fashion-mnist-lt", fashion_root, verify_md5=True)
    with pytest.raises(ConfigError, match=r"expected the published file, md5.*verify_md5 false"):
        build_dataset(config, split_seed=0)


def test_verify_false_says_nothing(fashion_root, data_config, recwarn):
    config = data_config("fashion-mnist-lt", fashion_root, verify_md5=False, validation_per_class=1)
    build_dataset(config, split_seed=0)
    assert not recwarn.list


@needs_package
def test_the_real_files(recwarn):
    config = TrainConfig(dataset="fashion-mnist-lt", imbalance_factor=100)
    config.data.verify_md5 = True
    data = build_dataset(config, split_seed=5)
    expected = [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert data.class_counts.tolist() == expected
    assert (len(data.train), len(data.test)) == (14886, 10000)
    assert torch.bincount(data.validation.labels, minlength=10).tolist() == [0, *[100] * 9]
    every = torch.cat([data.train.indices, data.validation.indices])
    assert len(every.unique()) == len(every)
    # The data set's well-known first image is an ankle boot.
    assert data.class_names[9] == "Ankle boot"
    assert not recwarn.list


@needs_package
def test_one_changed_byte_of_the_real_files(tmp_path):
    for path in _DEBIAN.iterdir():
        (tmp_path / path.name).symlink_to(path)
    changed = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(changed.read_bytes()))
    content[-1] ^= 1
    changed.unlink()
    changed.write_bytes(gzip.compress(bytes(content), compresslevel=1))
    config = TrainConfig(dataset="fashion-mnist-lt", data=DataConfig(root=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"t10k-images.*expected the published file"):
        build_dataset(config, split_seed=0)
