"""Render the images of glyphs-lt: ``python -m training.data.make_glyphs --output .data/glyphs``.

The fonts are those of glyph_fonts.csv, files of Debian 12's packages with their checksums:
226 files to train on, 76 of other families to test on. (Families drawn after the same model are on
the same side: DejaVu and Hack, Open Sans and Noto, Lato and Carlito.) Every font draws every class
once, so that the data set is balanced until the recipe cuts it. Each image is turned by up to 8
degrees, sheared by up to 0.1, scaled by 0.85 to 1.1 and shifted by up to 2 pixels; what is drawn
depends on the seed, the class and the font's place in the list alone. FreeType, inside pillow, may
change a pixel between versions: glyphs.json has the version, and the checksums of the images.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import math
import struct
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from training.data.checksums import md5
from training.data.glyphs import CLASSES, RECORD, SIZE
from training.errors import ConfigError
from training.runs.folder import write_atomic, write_json

FONTS = Path(__file__).with_name("glyph_fonts.csv")
_OVERSAMPLING = 4
_EM = 24  # pixels of the final image
_TURN, _SHEAR, _SCALE, _SHIFT = math.radians(8), 0.1, (0.85, 1.1), 2.0


def listed_fonts() -> list[dict[str, str]]:
    """Return the rows of the list: part (train, test), package, file and sha256 each."""
    with FONTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_fonts(rows: Sequence[dict[str, str]], folder: Path) -> list[Path]:
    """Find the files of the listed fonts below a folder, by name and checksum.

    Raises:
        ConfigError: Naming the packages of those that are missing or of another version.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.[to]tf")):
        by_name.setdefault(path.name, []).append(path)
    found: list[Path] = []
    missing: list[dict[str, str]] = []
    for row in rows:
        same = [p for p in by_name.get(row["file"], []) if _sha256(p) == row["sha256"]]
        found.extend(same[:1])
        missing.extend([row] if not same else [])
    if missing:
        others = [row["file"] for row in missing if row["file"] in by_name]
        raise ConfigError(
            f"{folder}: expected the {len(rows)} fonts of {FONTS.name}, {len(missing)} are not "
            f"there, for instance {missing[0]['file']}"
            + (f", or of another version, for instance {others[0]}" if others else "")
            + "; install Debian 12's packages: apt-get install "
            + " ".join(sorted({row["package"] for row in missing}))
        )
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(character: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> Image.Image:
    """Draw a character, centred, then turned, sheared, scaled and shifted a little.

    Args:
        character: A single one.
        font: Of `_EM` x `_OVERSAMPLING` pixels.
        rng: Source of the random values.

    Returns:
        Grey, `SIZE` x `SIZE`, white on black.

    Raises:
        ConfigError: If the font draws nothing.
    """
    side = SIZE * _OVERSAMPLING
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        raise ConfigError(
            f"{font.getname()[0]}: expected a glyph for {character!r}, it draws nothing."
        )
    image = Image.new("L", (side, side))
    place = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, character, fill=255, font=font)
    turn, shear = rng.uniform(-_TURN, _TURN), rng.uniform(-_SHEAR, _SHEAR)
    scale = rng.uniform(*_SCALE)
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    # From a place in the new image to one in the old, around the centre.
    a, b, d, e = cos, cos * shear - sin, sin, sin * shear + cos
    dx, dy = side / 2 + _OVERSAMPLING * rng.uniform(-_SHIFT, _SHIFT, 2)
    moved = (a, b, side / 2 - a * dx - b * dy, d, e, side / 2 - d * dx - e * dy)
    turned = image.transform((side, side), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
    return turned.reduce(_OVERSAMPLING)


def render(fonts: Sequence[Path], seed: Sequence[int]) -> tuple[NDArray[np.uint8], ...]:
    """Draw every class with every font: images [N, 32, 32], labels [N]."""
    images = np.empty((len(fonts), len(CLASSES), SIZE, SIZE), np.uint8)
    for place, path in enumerate(fonts):
        font = ImageFont.truetype(str(path), _EM * _OVERSAMPLING, layout_engine=_LAYOUT)
        for label, character in enumerate(CLASSES):
            rng = np.random.default_rng([*seed, label, place])
            images[place, label] = np.asarray(draw(character, font, rng))
    labels = np.tile(np.arange(len(CLASSES), dtype=np.uint8), len(fonts))
    return images.reshape(-1, SIZE, SIZE), labels


_LAYOUT = ImageFont.Layout.BASIC  # the other one depends on what is installed


def make(output: Path, folder: Path, seed: int) -> None:
    """Render both parts and write them as gzipped IDX files, with a record beside them.

    Raises:
        ConfigError: If fonts are missing.
    """
    rows = listed_fonts()
    found = find_fonts(rows, folder)
    output.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for number, part in enumerate(("train", "test")):
        fonts = [path for row, path in zip(rows, found, strict=True) if row["part"] == part]
        images, labels = render(fonts, (seed, number))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = header + array.tobytes()
            name = f"{part}-{kind}-ubyte.gz"
            checksums[name] = md5(content)
            packed = gzip.compress(content, mtime=0)  # the same bytes every time
            write_atomic(output / name, partial(_write, packed))
        print(f"{part}: {len(fonts)} fonts, {len(labels)} images of {len(CLASSES)} classes")
    record = {
        "classes": list(CLASSES),
        "seed": seed,
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "fonts_sha256": _sha256(FONTS),
        "md5": checksums,
    }
    write_json(output / RECORD, record)
    print(output / RECORD)


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.data.make_glyphs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the images")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        make(options.output, options.fonts, options.seed)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
