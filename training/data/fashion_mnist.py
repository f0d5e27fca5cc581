"""fashion-mnist-lt: Fashion-MNIST in its IDX files, cut to a long tail.

60,000 + 10,000 grey images of 28 x 28 pixels in 10 balanced classes (Xiao, Rasul and Vollgraf,
arXiv 1708.07747; MIT licence). Debian has them as the package dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.base import LongTailedDataset
from training.data.checksums import Verifier, md5
from training.data.options import ResolvedData
from training.data.resident import Arrays, resident_dataset
from training.errors import ConfigError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# md5 of the uncompressed content: gzip's own bytes differ between the authors' files and Debian's.
# Taken from Debian's package 0.0~git20200523.55506a9-1.
_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
_IMAGES = {"train": 60_000, "t10k": 10_000}
_SIZE = 28


def load_fashion_mnist_lt(data: ResolvedData, seed: int) -> LongTailedDataset:
    """Load fashion-mnist-lt from the four IDX files in ``data.root``, gzipped or not.

    Args:
        data: Its options.
        seed: Seed of the split; 0 is the published protocol's.

    Raises:
        ConfigError: Naming a file that is missing, truncated, corrupt or another one.
    """
    verifier = Verifier(data.verify_md5)
    train, test = (_read_part(Path(data.root), part, verifier) for part in ("train", "t10k"))
    return resident_dataset(
        "fashion-mnist-lt", CLASS_NAMES, train, test, data, seed, notes=tuple(verifier.notes)
    )


def _read_part(root: Path, part: str, verifier: Verifier) -> Arrays:
    images_path, images = _read(root, f"{part}-images-idx3-ubyte", 3, verifier)  # [N, 28, 28]
    labels_path, labels = _read(root, f"{part}-labels-idx1-ubyte", 1, verifier)  # [N]
    if images.shape[1:] != (_SIZE, _SIZE):
        raise ConfigError(
            f"{images_path}: expected images of {_SIZE} x {_SIZE} pixels, got "
            f"{' x '.join(map(str, images.shape[1:]))}."
        )
    if len(images) != len(labels):
        raise ConfigError(
            f"{labels_path}: expected {len(images)} labels, one for each image in "
            f"{images_path.name}, got {len(labels)}."
        )
    present = np.unique(labels)
    if present.tolist() != list(range(len(CLASS_NAMES))):
        raise ConfigError(
            f"{labels_path}: expected labels 0 to {len(CLASS_NAMES) - 1}, each at least once, got "
            f"{present.tolist()}."
        )
    return Arrays(images[:, None], labels.astype(np.int64))


def _read(
    root: Path, name: str, dimensions: int, verifier: Verifier
) -> tuple[Path, NDArray[np.uint8]]:
    candidates = (root / f"{name}.gz", root / name)
    path = next((path for path in candidates if path.exists()), candidates[0])
    if not path.exists():
        raise ConfigError(
            f"{path}: expected this file, found none; install Debian's package "
            "dataset-fashion-mnist, or pass the folder of the four IDX files as --data.root."
        )
    content = read_idx_bytes(path)
    array = parse_idx(path, content, dimensions)
    verifier.compare(
        path,
        md5(content),
        (_MD5[name],),
        full_size=len(array) == _IMAGES[name.partition("-")[0]],
        what="md5 of the uncompressed content",
    )
    return path, array


_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 8


def read_idx_bytes(path: Path) -> bytes:
    """Return the content of an IDX file, without its compression.

    Raises:
        ConfigError: If the file is missing, unreadable or its compression is broken.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a readable IDX file, got: {error.strerror}; check --data.root."
        ) from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(
            f"{path}: expected a whole gzip file, got a truncated or corrupt one ({error}); fetch "
            "the file again."
        ) from error


def parse_idx(path: Path, content: bytes, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in the content of an IDX file of uint8 values.

    Args:
        path: Where the content comes from, for messages.
        content: The uncompressed bytes.
        dimensions: How many dimensions it must have: 3 for images, 1 for labels.

    Raises:
        ConfigError: If it is another kind of file, or not as long as it says.

    Example:
        >>> header = bytes([0, 0, 8, 1, 0, 0, 0, 3])
        >>> parse_idx(Path("labels"), header + bytes([7, 0, 9]), 1).tolist()
        [7, 0, 9]
    """
    magic = bytes([0, 0, _UINT8, dimensions])
    if content[:4] != magic:
        raise ConfigError(
            f"{path}: expected an IDX file of uint8 with {dimensions} dimension(s), which starts "
            f"with {magic.hex()}, got {content[:4].hex() or 'an empty file'}; check that images "
            "and labels are not swapped, or fetch the file again."
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ConfigError(f"{path}: expected a header of {header} bytes, got {len(content)} bytes.")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise ConfigError(
            f"{path}: expected {math.prod(sizes)} bytes after the header of sizes {sizes}, got "
            f"{len(content) - header}; fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
