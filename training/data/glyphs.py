"""glyphs-lt: characters rendered from the fonts of Debian's packages, cut to a long tail.

Grey images of 32 x 32 pixels, white on black, in 110 classes: digits, Latin, Greek and Cyrillic
letters, and signs. No family of fonts is in both the training and the test part.
`training.data.make_glyphs` renders the files that are read here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.base import LongTailedDataset
from training.data.checksums import md5
from training.data.fashion_mnist import parse_idx, read_idx_bytes
from training.data.options import ResolvedData
from training.data.resident import Arrays, resident_dataset
from training.errors import ConfigError

# Of what looks alike in some font one is here: the capital of C/c, K/k, O/o/0, P/p, S/s, U/u, V/v,
# W/w, X/x, Y/y/gamma, Z/z, pi, phi, psi and theta; of Greek and Cyrillic letters those with a form
# of their own (so neither alpha, an italic a, nor eta, n); 3, 4, 6, b and B without the Cyrillic
# letters and the sharp s that are like them; and none of I, l and 1.
CLASSES = (
    "23456789"
    "ABCDEFGHJKLMNOPQRSTUVWXYZ"
    "abdefghijmnqrt"
    "ΓΔΘΛΞΠΣΦΨΩβδεζλμξσω"
    "БДЖИЙЦШЩЪЫЭЮЯЂЉЊ"
    "&@#%$?!*+=§€£¥©®¶{}[]<>~÷±«»"
)
SIZE = 32
RECORD = "glyphs.json"


def load_glyphs_lt(data: ResolvedData, seed: int) -> LongTailedDataset:
    """Load glyphs-lt from the folder that `training.data.make_glyphs` has written.

    Args:
        data: Its options.
        seed: Seed of the split.

    Raises:
        ConfigError: Naming a file that is missing, damaged or of another rendering.
    """
    root = Path(data.root)
    if not (root / RECORD).is_file():
        raise ConfigError(
            f"{root / RECORD}: expected the record of rendered glyphs, found none; run "
            f"python -m training.data.make_glyphs --output {root}"
        )
    record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    train, test = (_read_part(root, part, record["md5"]) for part in ("train", "test"))
    return resident_dataset("glyphs-lt", tuple(record["classes"]), train, test, data, seed)


def _read_part(root: Path, part: str, checksums: dict[str, str]) -> Arrays:
    images = _read(root / f"{part}-images-idx3-ubyte.gz", 3, checksums)  # [N, 32, 32]
    labels = _read(root / f"{part}-labels-idx1-ubyte.gz", 1, checksums)  # [N]
    return Arrays(images[:, None], labels.astype(np.int64))


def _read(path: Path, dimensions: int, checksums: dict[str, str]) -> NDArray[np.uint8]:
    content = read_idx_bytes(path)
    if md5(content) != checksums[path.name]:
        raise ConfigError(
            f"{path}: expected the content that {RECORD} records, md5 {checksums[path.name]}, got "
            f"{md5(content)}; render the glyphs again."
        )
    return parse_idx(path, content, dimensions)
