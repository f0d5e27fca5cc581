"""cifar10-lt and cifar100-lt: CIFAR in its python batches, cut to a long tail.

50,000 + 10,000 colour images of 32 x 32 pixels in 10 or 100 balanced classes (A. Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009). The files are pickles; they are read
by an unpickler that knows arrays and plain containers only, so a file cannot run code.
"""

from __future__ import annotations

import codecs
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.base import LongTailedDataset
from training.data.checksums import Verifier, md5
from training.data.options import ResolvedData
from training.data.resident import Arrays, resident_dataset
from training.errors import ConfigError

# The normalisation of Cao et al. and of most who followed, for both data sets, in units of 1 / 255.
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)
_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class _Format:
    """What distinguishes the two data sets: file -> (md5, images), and the keys."""

    folder: str
    train: dict[str, tuple[str, int]]
    test: dict[str, tuple[str, int]]
    meta: tuple[str, str]
    labels_key: str
    names_key: str
    num_classes: int


# md5 of the files in cifar-10-python.tar.gz (c58f30108f718f92721af3b95e74349a) and
# cifar-100-python.tar.gz (eb9058c3a382ffc7106e4002c42a8d85), as torchvision/datasets/cifar.py
# states them.
_CIFAR10 = _Format(
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": ("c99cafc152244af753f735de768cd75f", 10_000),
        "data_batch_2": ("d4bba439e000b95fd0a9bffe97cbabec", 10_000),
        "data_batch_3": ("54ebc095f3ab1f0389bbae665268c751", 10_000),
        "data_batch_4": ("634d18415352ddfa80567beed471001a", 10_000),
        "data_batch_5": ("482c414d41f54cd18b22e5b47cb7c3cb", 10_000),
    },
    test={"test_batch": ("40351d587109b95175f43aff81a1287e", 10_000)},
    meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    labels_key="labels",
    names_key="label_names",
    num_classes=10,
)
_CIFAR100 = _Format(
    folder="cifar-100-python",
    train={"train": ("16019d7e3df5f24257cddd939b257f8d", 50_000)},
    test={"test": ("f0ef6b0ae62326f3e7ffdfab6717acfc", 10_000)},
    meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
    labels_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
)


def load_cifar10_lt(data: ResolvedData, seed: int) -> LongTailedDataset:
    """Load cifar10-lt from the files of cifar-10-python.tar.gz; see `load_fashion_mnist_lt`.

    ``data.root`` is the folder cifar-10-batches-py, or the one that holds it.
    """
    return _load("cifar10-lt", _CIFAR10, data, seed)


def load_cifar100_lt(data: ResolvedData, seed: int) -> LongTailedDataset:
    """Load cifar100-lt (fine labels) from the files of cifar-100-python.tar.gz.

    ``data.root`` is the folder cifar-100-python, or the one that holds it.
    """
    return _load("cifar100-lt", _CIFAR100, data, seed)


def _load(name: str, form: _Format, data: ResolvedData, seed: int) -> LongTailedDataset:
    root = Path(data.root)
    if (root / form.folder).is_dir():
        root = root / form.folder
    verifier = Verifier(data.verify_md5)
    train, test = (_read_part(root, files, form, verifier) for files in (form.train, form.test))
    class_names = _read_names(root, form, verifier, full_size=not verifier.notes)
    if np.unique(train.labels).tolist() != list(range(form.num_classes)):
        raise ConfigError(
            f"{root}: expected training images of each class 0 to {form.num_classes - 1}, got "
            f"labels {np.unique(train.labels).tolist()}."
        )
    return resident_dataset(
        name,
        class_names,
        train,
        test,
        data,
        seed,
        statistics=(255 * torch.tensor(_MEAN), 255 * torch.tensor(_STD)),
        notes=tuple(verifier.notes),
    )


def _read_part(
    root: Path, files: dict[str, tuple[str, int]], form: _Format, verifier: Verifier
) -> Arrays:
    images, labels = [], []
    for name, (checksum, count) in files.items():
        path = root / name
        content, batch = _read_pickle(path)
        images.append(_images(path, batch))
        labels.append(_labels(path, batch, form, len(images[-1])))
        verifier.compare(
            path, md5(content), (checksum,), full_size=len(images[-1]) == count, what="md5"
        )
    return Arrays(np.concatenate(images), np.concatenate(labels))


def _images(path: Path, batch: dict[str, Any]) -> np.ndarray:
    """Return the images of a batch, uint8 [N, 3, 32, 32]."""
    images = batch.get("data")
    columns = int(np.prod(_SHAPE))
    if not (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 2
        and images.shape[1] == columns
    ):
        got = (
            f"{images.dtype} of shape {images.shape}"
            if isinstance(images, np.ndarray)
            else type(images).__name__
        )
        raise ConfigError(f"{path}: expected data, uint8 [N, {columns}], got {got}.")
    return images.reshape(-1, *_SHAPE)


def _labels(path: Path, batch: dict[str, Any], form: _Format, count: int) -> np.ndarray:
    """Return the labels of a batch, int64 [N]."""
    labels = batch.get(form.labels_key)
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ConfigError(
            f"{path}: expected {form.labels_key}, a list of integers, got a file with the keys "
            f"{sorted(batch)}; is it the other CIFAR?"
        )
    if len(labels) != count:
        raise ConfigError(f"{path}: expected {count} labels, one per image, got {len(labels)}.")
    wrong = [label for label in labels if not 0 <= label < form.num_classes]
    if wrong:
        raise ConfigError(
            f"{path}: expected labels 0 to {form.num_classes - 1}, got {wrong[0]} among them."
        )
    return np.asarray(labels, dtype=np.int64)


def _read_names(root: Path, form: _Format, verifier: Verifier, full_size: bool) -> tuple[str, ...]:
    name, checksum = form.meta
    content, meta = _read_pickle(root / name)
    names = meta.get(form.names_key)
    if not isinstance(names, list) or len(names) != form.num_classes:
        raise ConfigError(
            f"{root / name}: expected {form.names_key}, a list of {form.num_classes} names, got "
            f"{names!r:.80}."
        )
    verifier.compare(root / name, md5(content), (checksum,), full_size=full_size, what="md5")
    return tuple(str(name) for name in names)


class _ArrayUnpickler(pickle.Unpickler):
    """Knows what numpy's arrays need, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of four names; everything else is refused."""
        known = {
            # numpy moved the module in 2.0; the files of 2009 have the old name.
            ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
            ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode_latin1,  # how python 3 writes bytes in protocol 2
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


_RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


def _read_pickle(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a file's bytes, and the dict in them with text as keys."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a readable file of CIFAR's python version, got: {error.strerror}; "
            "check --data.root."
        ) from error
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a corrupt pickle can raise nearly anything
        raise ConfigError(
            f"{path}: expected a pickle of arrays and plain containers, got a truncated, corrupt "
            f"or unsafe file ({type(error).__name__}: {error}); fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a pickled dict, got {type(value).__name__}.")
    return content, {_text(key): item for key, item in value.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
