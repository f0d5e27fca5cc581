"""IDX, the format of MNIST and its relatives: big-endian sizes, then the bytes of one array.

Bytes 0 and 1 are 0, byte 2 is the type (8 is uint8), byte 3 the number of dimensions, then each
size as a 32-bit integer, then the values (Y. LeCun, "The MNIST database", file formats). gzip is
undone if the file starts as gzip does.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError

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
