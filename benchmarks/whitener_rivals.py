"""Who whitens a data set right, how fast, and in how much memory: Whitener beside its rivals.

    python -m benchmarks.whitener_rivals --folder /fast/disk

prints two tables: how far the covariance of everybody's output is from the identity on data that
are hard (eigenvalues of it against 1, and 0 in null directions), and time and peak memory on a
memory map of 1,000,000 x 768 float32, of 3 GB, which is written to the folder and removed. Every
rival is run on the input's dtype, scaled to the divisor n - 1, with as small an eps as it takes.
Times are multiples of those of the first, by the clock, and in brackets of all processors, which
say more on a machine that others use. Memory is what is allocated (RssAnon) beyond the imports;
pages of the file, which the system takes back at will, do not count. scikit-learn, kornia,
welford-torch and pycytominer are measured where they are installed. One table alone, as they are
committed:

    python -m benchmarks.whitener_rivals --errors > benchmarks/results/whitener-errors.md
    python -m benchmarks.whitener_rivals --speed > benchmarks/results/whitener-speed.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastwhiten import Whitener
from fastwhiten.moments import Moments

Rows = np.ndarray[Any, Any]
Transform = Callable[[Rows], Rows]

CHUNK = 8192
LIMIT_BYTES, LIMIT_SECONDS = 16 << 30, 900
TINY = 1e-14  # eps of those that need one; the largest variance is 1


def ours(kind: str = "zca") -> Callable[[Rows], Transform]:
    """Return how `fastwhiten.Whitener` fits."""
    return lambda x: Whitener(kind=kind, ddof=1).fit(x).transform


def scikit_learn(x: Rows) -> Transform:
    """Fit scikit-learn's PCA."""
    from sklearn.decomposition import PCA

    return PCA(whiten=True).fit(x).transform


def scikit_learn_svd(x: Rows) -> Transform:
    """Fit scikit-learn's PCA by an SVD of the rows, which it does not choose by itself."""
    from sklearn.decomposition import PCA

    return PCA(whiten=True, svd_solver="full").fit(x).transform


def kornia(x: Rows) -> Transform:
    """Fit kornia's ZCA."""
    from kornia.enhance import ZCAWhitening

    zca = ZCAWhitening(eps=TINY).fit(torch.from_numpy(np.asarray(x)))
    return lambda rows: zca(torch.from_numpy(rows)).numpy()


def pycytominer(x: Rows) -> Transform:
    """Fit pycytominer's Spherize."""
    import pandas
    from pycytominer.operations import Spherize

    spherize = Spherize(epsilon=0.0, return_numpy=True).fit(pandas.DataFrame(x))
    return lambda rows: spherize.transform(pandas.DataFrame(rows))


def welford_torch(x: Rows) -> Transform:
    """Fit welford-torch's online covariance, in chunks."""
    from welford_torch import OnlineCovariance

    online = None
    for start in range(0, len(x), CHUNK):
        rows = torch.from_numpy(np.array(x[start : start + CHUNK]))
        online = online or OnlineCovariance(dtype=rows.dtype)
        online.add_all(rows)
    mean, matrix = online.mean, online.whit * (1 - 1 / len(x)) ** 0.5  # it divides by n
    return lambda rows: ((torch.from_numpy(rows) - mean) @ matrix).numpy()


FITS: dict[str, Callable[[Rows], Transform]] = {
    "Whitener, zca": ours(),
    "Whitener, pca": ours("pca"),
    "Whitener, cholesky": ours("cholesky"),
    "scikit-learn, PCA": scikit_learn,
    "scikit-learn, PCA by SVD": scikit_learn_svd,
    "kornia, ZCA": kornia,
    "pycytominer, Spherize": pycytominer,
    "welford-torch": welford_torch,
}
ALIKE = ("Whitener, pca", "Whitener, cholesky")  # as fast as the first
PACKAGES = {
    "scikit-learn, PCA": "sklearn",
    "scikit-learn, PCA by SVD": "sklearn",
    "kornia, ZCA": "kornia",
    "pycytominer, Spherize": "pycytominer",
    "welford-torch": "welford_torch",
}


def draw(rows: int, condition: float, columns: int = 64, seed: int = 0) -> Rows:
    """Return float64 rows whose population covariance has that condition number, largest 1."""
    generator = np.random.default_rng(seed)
    q, _ = np.linalg.qr(generator.normal(size=(columns, columns)))
    scale = np.logspace(0, -0.5 * np.log10(condition), columns)
    x: Rows = (generator.normal(size=(rows, columns)) * scale) @ q
    return x


def scenes() -> Iterator[tuple[str, Rows, int]]:
    """Yield names, rows and their rank."""
    plain = draw(4000, 100)
    constant, twice = plain.copy(), plain.copy()
    constant[:, 5], twice[:, 5] = 0.1, plain[:, 6]
    yield "condition 100", plain, 64
    yield "condition 100, float32", plain.astype(np.float32), 64
    yield "condition 1e10", draw(4000, 1e10), 64
    yield "condition 1e10, float32", draw(4000, 1e10).astype(np.float32), 64
    yield "mean 1e8", plain + 1e8, 64
    yield "mean 1e4, float32", (plain + 1e4).astype(np.float32), 64
    yield "a constant column", constant, 63
    yield "a duplicate column", twice, 63
    yield "a duplicate column, float32", twice.astype(np.float32), 63
    yield "50 rows", plain[:50], 49


def deviation(y: Rows, rank: int) -> float:
    """Return how far eigenvalues of the covariance of ``y`` (divisor n - 1) are from 1, or 0."""
    moments = Moments.of(torch.from_numpy(np.asarray(y, dtype=np.float64)), False, "auto")
    values = torch.linalg.eigvalsh(moments.scatter / (moments.count - 1)).flip(0)
    expected = torch.zeros_like(values)
    expected[:rank] = 1.0
    return float((values - expected).abs().max())


def missing(name: str) -> bool:
    """Return whether the package of a rival is not installed."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None


def accuracy() -> None:
    """Print the first table, and how far outputs of one kind are apart where all are right."""
    names = [name for name in FITS if not missing(name)]
    print("| | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
    agree: dict[str, float] = {}
    for scene, x, rank in scenes():
        cells = []
        for name in names:
            try:
                y = FITS[name](x)(x)
                finite = bool(np.isfinite(y).all())
                cells.append(f"{deviation(y, rank):.0e}" if finite else "not finite")
            except Exception as failure:  # of a rival, whatever it is
                cells.append(f"{type(failure).__name__}")
                continue
            if scene == "condition 100":
                kind = "pca" if name.startswith("scikit") else "zca"
                agree[name] = float(np.abs(y - ours(kind)(x)(x)).max())
        print(f"| {scene} | " + " | ".join(cells) + " |", flush=True)
    for name in PACKAGES:
        if name in agree:
            print(f"\n{name}: outputs at condition 100 differ from ours by {agree[name]:.0e}.")
    distributions = ("numpy", "torch", "scikit-learn", "kornia", "pycytominer", "welford-torch")
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    print("\nVersions:", ", ".join(f"{d} {found[d]}" for d in distributions if d in found) + ".")


class Peak(threading.Thread):
    """The most memory that is allocated while it runs, in bytes."""

    def __init__(self) -> None:
        """Begin at what is allocated now."""
        super().__init__(daemon=True)
        self.base = self.most = self._now()
        self.stopped = threading.Event()

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def run(self) -> None:
        """Look a hundred times a second."""
        while not self.stopped.wait(0.01):
            self.most = max(self.most, self._now())


def serve(name: str, path: str, white: str) -> None:
    """Measure one on a file; print the figures as JSON. A process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
    small = draw(1000, 10)
    FITS[name](small)(small)  # imports, threads
    x, figures = np.load(path, mmap_mode="r"), {}
    out = np.lib.format.open_memmap(white, "w+", x.dtype, x.shape)
    for what in ("fit", "transform"):
        peak, start, busy = Peak(), time.perf_counter(), time.process_time()
        peak.start()
        if what == "fit":
            transform = FITS[name](x)
        else:
            for row in range(0, len(x), CHUNK):
                out[row : row + CHUNK] = transform(np.array(x[row : row + CHUNK]))
        figures[what] = time.perf_counter() - start
        figures[f"{what} busy"] = time.process_time() - busy
        peak.stopped.set()
        peak.join()
        figures[f"{what} bytes"] = peak.most - peak.base
    total: Moments | None = None
    for row in range(0, len(out), CHUNK):
        part = Moments.of(torch.from_numpy(np.array(out[row : row + CHUNK])), False, "auto")
        if total is None:
            total = part
        else:
            total.merge(part)
    assert total is not None
    values = torch.linalg.eigvalsh(total.scatter / (total.count - 1))
    figures["error"] = float((values - 1).abs().max())
    print(json.dumps(figures))


def write(path: Path, rows: int, columns: int) -> None:
    """Write rows of condition number 1e6 and means of up to 3."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    mixing = torch.logspace(0, -3, columns).unsqueeze(1) * q
    mean = torch.linspace(-3, 3, columns)
    for row in range(0, rows, CHUNK):
        normal = torch.randn(min(CHUNK, rows - row), columns, generator=generator)
        out[row : row + CHUNK] = (normal @ mixing + mean).numpy()
    out.flush()


def speed(folder: Path, rows: int, columns: int) -> None:
    """Print the second table."""
    path, white = folder / "rivals.npy", folder / "white.npy"
    write(path, rows, columns)
    first: dict[str, float] = {}
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    print(f"\n{rows:,} x {columns} float32, {threads} threads, {capability}\n")
    print("| | fit | transform | fit, MB | transform, MB | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    try:
        for name in FITS:
            if missing(name) or name in ALIKE:
                continue
            command = [sys.executable, "-m", "benchmarks.whitener_rivals", "--serve", name]
            command += [str(path), str(white)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = [f"more than {LIMIT_SECONDS} s of processors, or killed"]
                said += done.stderr.strip().splitlines()
                large = f"more than {LIMIT_BYTES >> 30} GiB of address space"
                why = large if "MemoryError" in said[-1] else said[-1]
                print(f"| {name} | {why} | | | | |", flush=True)
                continue
            f = json.loads(done.stdout.splitlines()[-1])
            memory = [f"{f[f'{what} bytes'] / 1e6:.0f}" for what in ("fit", "transform")]
            first = first or f
            both = [
                f"{f[what] / first[what]:.2f} ({f[f'{what} busy'] / first[f'{what} busy']:.2f})"
                for what in ("fit", "transform")
            ]
            cells = [*both, *memory, f"{f['error']:.0e}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    finally:
        path.unlink(missing_ok=True)
        white.unlink(missing_ok=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=768)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--errors", action="store_true", help="the first table alone")
    one.add_argument("--speed", action="store_true", help="the second one alone")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if not options.speed:
        accuracy()
    if not options.errors:
        speed(options.folder, options.rows, options.columns)


if __name__ == "__main__":
    main()
