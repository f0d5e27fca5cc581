"""Does the recipe train as a plain loop does? Fashion-MNIST-LT, imbalance 100, no whitening.

    python -m benchmarks.reproduce [--seeds 5] [--epochs 3] [--loss ce]

`plain` has nothing of the recipe but the network's layers: files, long-tailed split, augmentation,
batches, loss, optimiser, schedule and evaluation are written anew, as the preset fashion-mnist-lt
says. Both train with every seed, from random streams of their own. Printed is the accuracy on the
test images after the last epoch, and the difference's mean with its 95 % interval (Student's t, of
the differences seed by seed). Exit status 1: the interval leaves out 0, as it does for equal loops
in one of twenty runs. Few seeds find large faults only: look at the interval's width.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from training.cli import parse
from training.commands.compare import paired_differences, spread
from training.commands.train import run_train
from training.config import TrainConfig
from training.models import SmallResNet

FOLDER = "/usr/share/datasets/fashion-mnist"
BATCH, WARMUP = 128, 2


def read(folder: str, part: str) -> tuple[Tensor, np.ndarray]:
    """Images float32 [N, 1, 28, 28] in 0 .. 255 and labels [N] of the gzipped files of a part."""
    images, labels = (
        np.frombuffer(gzip.decompress((Path(folder) / f"{part}-{name}.gz").read_bytes()), np.uint8)
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return torch.from_numpy(images[16:].reshape(-1, 1, 28, 28).astype(np.float32)), labels[8:]


def long_tail(labels: np.ndarray, factor: float) -> np.ndarray:
    """Positions that Cao et al. keep: of class k, n_0 factor^(-k / 9), shuffled with seed 0."""
    random, kept = np.random.RandomState(0), []
    for k in range(10):
        members = np.flatnonzero(labels == k)
        random.shuffle(members)
        kept.append(members[: int(len(members) * (1 / factor) ** (k / 9))])
    return np.concatenate(kept)


def plain(folder: str, seed: int, epochs: int, loss: str, factor: float = 100.0) -> float:
    """Train by a loop of its own; return the accuracy on the test images."""
    torch.manual_seed(seed)
    images, labels = read(folder, "train")
    kept = long_tail(labels, factor)
    x, y = images[kept], torch.from_numpy(labels[kept]).long()
    mean, std = x.mean(), x.std()
    prior = (y.bincount() / len(y)).log() if loss == "logit-adjusted" else torch.zeros(10)
    model = nn.Sequential(SmallResNet(), nn.Linear(64, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps, warmup = len(x) // BATCH, WARMUP if epochs >= WARMUP else epochs // 2
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(x))
        rows = order[step % steps * BATCH :][:BATCH]
        crops = zip(pad(x[rows], (4, 4, 4, 4)), torch.randint(9, (BATCH, 2)).tolist(), strict=True)
        batch = torch.stack([image[:, i : i + 28, j : j + 28] for image, (i, j) in crops])
        batch = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, batch.flip(3), batch)
        done = (step - warmup * steps) / max(1, (epochs - warmup) * steps)
        rate = (step + 1) / (warmup * steps) if done < 0 else 0.5 + 0.5 * math.cos(math.pi * done)
        sgd.param_groups[0]["lr"] = 0.1 * rate
        sgd.zero_grad()
        cross_entropy(model((batch - mean) / std) + prior, y[rows]).backward()
        sgd.step()
    images, labels = read(folder, "t10k")
    with torch.no_grad():
        predicted = torch.cat([model.eval()((part - mean) / std) for part in images.split(500)])
    return float((predicted.argmax(1).numpy() == labels).mean())


def recipe_config(folder: str, seed: int, epochs: int, loss: str, root: str) -> TrainConfig:
    """The preset's run of this many epochs, on as many threads as this process has."""
    options = {
        "data.root": folder,
        "seed": seed,
        "optim.epochs": epochs,
        "evaluate_every": epochs,
        "evaluate_test": "false",
        "output.root": root,
        "output.plots": "false",
        "output.loggers": "[]",
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    config: TrainConfig = parse(["train", "--config", f"fashion-mnist-lt/{loss}", *arguments])[1]
    return config


def recipe(folder: str, seed: int, epochs: int, loss: str) -> float:
    """Train as ``python -m training train`` does; return the accuracy on the test images."""
    with tempfile.TemporaryDirectory() as root:
        config = recipe_config(folder, seed, epochs, loss, root)
        summary = run_train(config, Console(file=io.StringIO()))
    return float(summary["last"]["test"]["accuracy"])


def main(arguments: list[str] | None = None) -> int:
    """Run both with every seed; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many; at least 2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--loss", choices=("ce", "logit-adjusted"), default="ce")
    parser.add_argument("--root", default=FOLDER, help="folder of the gzipped files")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error("expected --seeds of at least 2: an interval needs differences")
    found: dict[str, dict[int, float | None]] = {"recipe": {}, "plain": {}}
    for seed in range(given.seeds):
        found["recipe"][seed] = recipe(given.root, seed, given.epochs, given.loss)
        found["plain"][seed] = plain(given.root, seed, given.epochs, given.loss)
        print(f"seed {seed}: recipe {found['recipe'][seed]:.4f}, plain {found['plain'][seed]:.4f}")
    difference = spread(paired_differences(found["recipe"], found["plain"]))
    half = difference.half_width(0.95)
    means = {name: spread(list(values.values())).mean for name, values in found.items()}
    print(f"mean: recipe {means['recipe']:.4f}, plain {means['plain']:.4f}")
    print(f"recipe - plain: {difference.mean:+.4f} +- {half:.4f} (95 %, n = {given.seeds})")
    return int(abs(difference.mean) > half)


if __name__ == "__main__":
    raise SystemExit(main())
