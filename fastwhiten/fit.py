"""Fit a whitening to a NumPy file of any size, and whiten it.

    python -m fastwhiten.fit in.npy out.safetensors --kind pca --transform white.npy

The file ``[n, C]`` is read through a memory map, a chunk at a time: once to fit, once more to
transform. ``fastwhiten.Whitener.load("out.safetensors")`` reads the result.
"""

from __future__ import annotations

import argparse
import sys

from . import validation
from .chunks import numpy, tensor
from .whitener import Whitener


def _shrinkage(text: str) -> str | float:
    return text if text in ("oas", "ledoit-wolf") else float(text)


def main(arguments: list[str] | None = None) -> None:
    """Fit, save, and transform; ``arguments`` are the command line's by default."""
    parser = argparse.ArgumentParser(prog="python -m fastwhiten.fit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", help="rows [n, C], a .npy file")
    parser.add_argument("output", help="the fitted Whitener, a safetensors file")
    parser.add_argument("--kind", choices=validation.WHITENER_KINDS, default="zca")
    parser.add_argument("--n-components", type=int, help="leading directions that are kept")
    parser.add_argument("--eps", type=float, default=0.0, help="added to the eigenvalues")
    parser.add_argument(
        "--shrinkage", type=_shrinkage, help="oas, ledoit-wolf or an intensity in [0, 1]"
    )
    parser.add_argument("--ddof", type=int, choices=(0, 1), default=0, help="divisor n - ddof")
    parser.add_argument("--transform", metavar="FILE", help="write the whitened rows, a .npy file")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    given = vars(parser.parse_args(arguments))
    source, target, white = given.pop("input"), given.pop("output"), given.pop("transform")
    progress = not given.pop("quiet")
    whitener = Whitener(**given)
    try:
        np = numpy()
        rows = np.load(source, mmap_mode="r")
        whitener.fit(rows, progress=progress).save(target)
        if white is not None:
            shape = (len(rows), whitener.whitening_.shape[1])
            dtype = tensor(rows[:0]).numpy().dtype
            out = np.lib.format.open_memmap(white, "w+", dtype, shape)
            whitener.transform(rows, out=out, progress=progress)
            out.flush()
    except (OSError, ValueError, TypeError, ImportError) as error:
        sys.exit(f"python -m fastwhiten.fit: {error}")
    print(
        f"{target}: {whitener.kind} of {whitener.n_samples_seen_:,} rows, "
        f"{whitener.n_features_in_} columns, rank {whitener.rank_}"
    )


if __name__ == "__main__":
    main()
