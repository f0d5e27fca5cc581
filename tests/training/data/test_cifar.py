"""cifar10-lt and cifar100-lt from small python batches."""

from __future__ import annotations

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch

from training.data import build_dataset, cifar
from training.errors import ConfigError


def load(config):
    with pytest.warns(UserWarning, match="another number of images"):
        return build_dataset(config, split_seed=0)


def batch(root, name):
    return pickle.loads((root / "cifar-10-batches-py" / name).read_bytes())


def rewrite(root, name, **changes):
    content = {**batch(root, name), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    path = root / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_cifar10(cifar10_root, data_config):
    data = load(data_config("cifar10-lt", cifar10_root, validation_per_class=1))
    assert data.class_counts.tolist() == [20, 17, 14, 12, 10, 9, 7, 6, 5, 5]
    parts = [batch(cifar10_root, f"data_batch_{i}") for i in range(1, 6)]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part["labels"] for part in parts])
    assert np.array_equal(data.train.images.numpy(), images[data.train.indices])
    assert np.array_equal(data.train.labels.numpy(), labels[data.train.indices])
    test = batch(cifar10_root, "test_batch")
    assert np.array_equal(data.test.images.flatten(1).numpy(), test["data"])
    assert data.test.labels.tolist() == test["labels"]
    assert data.class_names[3] == "class 3"
    # The protocol's constants, not this split's statistics.
    assert data.mean.tolist() == pytest.approx([125.307, 122.961, 113.8575])


def test_cifar100(cifar100_root, data_config):
    data = load(data_config("cifar100-lt", cifar100_root, validation_per_class=0))
    assert data.num_classes == 100
    assert data.class_counts.max() == 10
    assert not data.has_validation
    assert data.class_names[42] == "fine 42"


def test_python_2_pickles_with_byte_keys(cifar10_root, data_config):
    expected = load(data_config("cifar10-lt", cifar10_root, validation_per_class=1))
    for name in [f"data_batch_{i}" for i in range(1, 6)]:
        content = {key.encode(): value for key, value in batch(cifar10_root, name).items()}
        raw = pickle.dumps(content, protocol=2)
        # The module's name before numpy 2, as in the files of 2009.
        raw = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (cifar10_root / "cifar-10-batches-py" / name).write_bytes(raw)
    data = load(data_config("cifar10-lt", cifar10_root, validation_per_class=1))
    assert torch.equal(data.train.images, expected.train.images)


class _Attack:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("function", [os.system, eval, open, np.load, np.fromfile])
def test_a_pickle_cannot_run_code(cifar10_root, data_config, tmp_path, function):
    marker = tmp_path / "marker"
    path = rewrite(cifar10_root, "data_batch_3", data=_Attack(function, f"touch {marker}"))
    with pytest.raises(ConfigError, match=r"unsafe file .*asks for") as error:
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_only_latin1_may_be_encoded(cifar10_root, data_config):
    import codecs

    rewrite(cifar10_root, "data_batch_3", extra=_Attack(codecs.encode, "x", "rot13"))
    with pytest.raises(ConfigError, match="asks for the encoding rot13"):
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((40, 3071), np.uint8)}, r"uint8 \[N, 3072\], got uint8 of shape"),
        ({"data": np.zeros((40, 3072), np.float32)}, "got float32"),
        ({"data": [1, 2]}, "got list"),
        ({"data": None}, "got NoneType"),
        ({"labels": None, "fine_labels": [0]}, "is it the other CIFAR"),
        ({"labels": [0] * 39}, "expected 40 labels, one per image, got 39"),
        ({"labels": [10] + [0] * 39}, "expected labels 0 to 9, got 10"),
    ],
)
def test_a_wrong_batch_is_named(cifar10_root, data_config, changes, message):
    path = rewrite(cifar10_root, "data_batch_2", **changes)
    with pytest.raises(ConfigError, match=message) as error:
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_truncated_batch_is_named(cifar10_root, data_config, length):
    path = cifar10_root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match="truncated, corrupt or unsafe") as error:
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)
    assert str(path) in str(error.value)


def test_missing_files_and_classes(cifar10_root, data_config):
    for name in [f"data_batch_{i}" for i in range(1, 6)]:
        labels = [label or 1 for label in batch(cifar10_root, name)["labels"]]
        rewrite(cifar10_root, name, labels=labels)
    with pytest.raises(ConfigError, match="images of each class 0 to 9"):
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)
    (cifar10_root / "cifar-10-batches-py" / "batches.meta").unlink()
    with pytest.raises(ConfigError, match=r"batches.meta: .*No such file"):
        build_dataset(data_config("cifar10-lt", cifar10_root), split_seed=0)


def test_md5_modes(cifar10_root, data_config, monkeypatch):
    strict = data_config("cifar10-lt", cifar10_root, verify_md5=True)
    with pytest.raises(ConfigError, match=r"data_batch_1: expected the published file, md5 c99ca"):
        build_dataset(strict, split_seed=0)
    # A file with as many images as the published one must be it.
    published = {f"data_batch_{i}": ("0" * 32, 40) for i in range(1, 6)}
    monkeypatch.setattr(cifar, "_CIFAR10", dataclasses.replace(cifar._CIFAR10, train=published))
    auto = data_config("cifar10-lt", cifar10_root)
    with pytest.raises(ConfigError, match="the file is corrupt or another one"):
        build_dataset(auto, split_seed=0)
