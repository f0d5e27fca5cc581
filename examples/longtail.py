"""
Long-tailed recognition in one file
===================================

The whole method, with whitening before the classifier::

    python examples/longtail.py                                   # digits of scikit-learn, no files
    python examples/longtail.py --data /usr/share/datasets/fashion-mnist --imbalance-factor 100 \
        --epochs 30 --warmup-epochs 2                             # Debian's dataset-fashion-mnist
    python examples/longtail.py --whitening none --tau 0 --bet-period 0     # plain cross-entropy

For those who read; `training/` is for those who configure, and `python -m benchmarks.reproduce`
compares the two. A few classes have most of the training images, and every class counts the same in
the test. Three parts answer to that, and each can be left out:

1. Whitening. The network's pooled features z [B, D] are decorrelated before the linear classifier:
   y = W (z - mean) with W = (covariance + eps I)^(-1/2). Mean and covariance are the batch's, and
   the gradient flows through them; in evaluation both are running averages.
2. Logit adjustment (Menon et al., ICLR 2021). Cross-entropy of logits + tau log(prior) in training,
   and the logits alone in use, so that the classifier need not learn how frequent classes are.
3. B3RS (arXiv 2112.05958 and 2408.17197: what their abstracts say; the constants are ours).
   Classes, sorted by frequency, are cut into blocks, and a balanced batch has a fixed number of
   rows of each block, between the data's proportions and equality. Every batch is one, or with
   `--bet-period T` every T-th, as in those abstracts (BET), which trains no better.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwhiten import ChannelWhitening


class Images(NamedTuple):
    """Grey images float32 [N, 1, H, W], and their classes int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def take(self, positions: np.ndarray) -> Images:
        """Return some of the images."""
        return Images(*(values[torch.from_numpy(positions)] for values in self))


def long_tail(
    labels: np.ndarray,
    held_out: int,
    factor: float,
    random: np.random.Generator | np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a long-tailed training set, and of a test set of held_out images per class.

    Of class k, n_max * factor^(-k / (K - 1)) images are kept (Cao et al., NeurIPS 2019).
    """
    sizes = np.bincount(labels) - held_out  # [K]
    if not 1 <= factor <= sizes.min():
        raise SystemExit(f"expected an --imbalance-factor in [1, {sizes.min()}], got {factor}")
    train, test = [], []
    for k in range(len(sizes)):
        members = np.flatnonzero(labels == k)
        random.shuffle(members)
        count = int(sizes.min() * (1 / factor) ** (k / (len(sizes) - 1)))
        test.append(members[:held_out])
        train.append(members[held_out : held_out + count])
    return np.concatenate(train), np.concatenate(test)


def load_digits(factor: float, seed: int) -> tuple[Images, Images]:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels; the seed draws the split, 40 to test on."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    digits = Images(
        torch.from_numpy(bunch.images).float()[:, None], torch.from_numpy(bunch.target).long()
    )
    train, test = long_tail(bunch.target, 40, factor, np.random.default_rng(seed))
    return digits.take(train), digits.take(test)


def load_idx(folder: Path, factor: float) -> tuple[Images, Images]:
    """Gzipped IDX files of MNIST's format; the training part is cut as published, with seed 0."""

    def read(part: str) -> Images:
        pixels, labels = (
            np.frombuffer(gzip.decompress((folder / f"{part}-{name}.gz").read_bytes()), np.uint8)
            for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        side = math.isqrt((len(pixels) - 16) // (len(labels) - 8))
        square = torch.from_numpy(pixels[16:].reshape(-1, 1, side, side).astype(np.float32))
        return Images(square, torch.from_numpy(labels[8:].astype(np.int64)))

    train = read("train")
    kept, _ = long_tail(train.labels.numpy(), 0, factor, np.random.RandomState(0))
    return train.take(kept), read("t10k")


def augment(pixels: Tensor, shift: int, flip: bool) -> Tensor:
    """Shift every image by up to ``shift`` pixels each way, and mirror half of them: [B, 1, H, W].

    A shifted image is a window of the padded one.
    """
    size, (height, width) = len(pixels), pixels.shape[2:]
    padded = functional.pad(pixels, (shift,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, 1, 2s + 1, 2s + 1, H, W]
    rows, columns = torch.randint(2 * shift + 1, (2, size))
    pixels = windows[torch.arange(size), :, rows, columns]
    mirrored = flip & (torch.rand(size, 1, 1, 1) < 0.5)
    return torch.where(mirrored, pixels.flip(3), pixels)


def passes(positions: np.ndarray, random: np.random.Generator) -> Iterator[int]:
    """Yield all positions in random order, again and again."""
    while True:
        yield from random.permutation(positions).tolist()


def quotas(images: np.ndarray, rows: int, q: float) -> np.ndarray:
    """Rows of each block [G], sum ``rows``, in proportion to images^q; at least one.

    q = 1 follows the data, q = 0 makes blocks equal. Rounded by largest remainders.
    """
    exact = rows * images**q / (images**q).sum()
    parts = exact.astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: rows - parts.sum()]] += 1
    for block in np.flatnonzero(parts == 0):
        parts[block], parts[parts.argmax()] = 1, parts.max() - 1
    return parts


def batches(
    labels: np.ndarray, rows: int, period: int, blocks: int, q: float, seed: int
) -> Iterator[list[int]]:
    """Yield batches of positions without end: every period-th is of B3RS, 0 is none.

    Inside a block images come in passes of their own, so its classes keep their proportions.
    """
    random = np.random.default_rng(seed)
    ordinary = passes(np.arange(len(labels)), random)
    counts = np.bincount(labels)
    members = [
        np.flatnonzero(np.isin(labels, classes))
        for classes in np.array_split(np.argsort(-counts, kind="stable"), blocks)
    ]
    quota = quotas(np.array([len(m) for m in members], dtype=float), rows, q)
    streams = [passes(m, random) for m in members]
    number = 0
    while True:
        number += 1
        if period and number % period == 0:
            yield [p for s, n in zip(streams, quota, strict=True) for p in islice(s, int(n))]
        else:
            yield list(islice(ordinary, rows))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        """Create the layers."""
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out, H / stride, W / stride]."""
        return functional.relu(self.residual(x) + self.shortcut(x))


def network(classes: int, whitening: bool, width: int = 16) -> nn.Sequential:
    """A small ResNet, pooled features [B, 4 * width], whitening, a linear classifier."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        ChannelWhitening(4 * width) if whitening else nn.Identity(),
        nn.Linear(4 * width, classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def rate(step: int, steps: int, warmup: int) -> float:
    """Fraction of the peak learning rate: a linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))


@torch.no_grad()
def evaluate(model: nn.Module, pixels: Tensor, labels: Tensor, counts: Tensor) -> dict[str, float]:
    """Accuracies of plain logits: of all images, and means over classes.

    Classes are many-shot with more than 100 training images, few-shot with fewer than 20 (Liu et
    al., CVPR 2019); NaN where there is no class of a kind.
    """
    model.eval()
    correct = torch.cat([model(part) for part in pixels.split(500)]).argmax(1) == labels  # [N]
    model.train()
    per_class = torch.stack([correct[labels == k].float().mean() for k in range(len(counts))])
    groups = {
        "many": counts > 100,
        "medium": (counts >= 20) & (counts <= 100),
        "few": counts < 20,
        "balanced": counts >= 0,
    }
    found = {name: per_class[group].mean().item() for name, group in groups.items()}
    return {**found, "all": correct.float().mean().item()}


def train(options: argparse.Namespace, report: bool = True) -> dict[str, float]:
    """Train once; return the accuracies on the test images after the last epoch."""
    torch.manual_seed(options.seed)
    digits = options.data == "digits"
    if digits:
        known, unknown = load_digits(options.imbalance_factor, options.seed)
    else:
        known, unknown = load_idx(Path(options.data), options.imbalance_factor)
    counts = known.labels.bincount()  # [K]
    mean, std = known.pixels.mean(), known.pixels.std()
    adjustment = options.tau * (counts / counts.sum()).log()  # [K]

    model = network(len(counts), options.whitening == "fused")
    optimizer = torch.optim.SGD(
        model.parameters(), lr=options.lr, momentum=0.9, weight_decay=options.weight_decay
    )
    epoch = len(known.labels) // options.batch_size  # in steps
    if not epoch:
        raise SystemExit(f"expected a --batch-size of at most {len(known.labels)}, the images kept")
    most = min(len(counts), options.batch_size)
    if not 1 <= options.blocks <= most:
        raise SystemExit(f"expected --blocks in [1, {most}], got {options.blocks}")
    steps, warmup = options.epochs * epoch, options.warmup_epochs * epoch
    rows = batches(
        known.labels.numpy(),
        options.batch_size,
        options.bet_period,
        options.blocks,
        options.q,
        options.seed,
    )
    for step, positions in enumerate(islice(rows, steps)):
        pixels = augment(known.pixels[positions], 1 if digits else 4, flip=not digits)
        logits = model((pixels - mean) / std)
        loss = functional.cross_entropy(logits + adjustment, known.labels[positions])
        optimizer.param_groups[0]["lr"] = options.lr * rate(step, steps, warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if report and (step + 1) % (10 * epoch) == 0:
            print(f"epoch {(step + 1) // epoch:3}: loss {loss.item():.4f} (of its last batch)")
    return evaluate(model, (unknown.pixels - mean) / std, unknown.labels, counts)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description="Long-tailed recognition in one file.")
    add = parser.add_argument
    add("--data", default="digits", help="digits, or a folder of four gzipped IDX files")
    add("--imbalance-factor", type=float, default=50.0, help="largest class / rarest; >= 1")
    add("--whitening", choices=("fused", "none"), default="fused")
    add("--tau", type=float, default=1.0, help="of the logit adjustment; 0 is none")
    add("--bet-period", type=int, default=1, help="every so many batches one of B3RS; 0 is none")
    add("--blocks", type=int, default=5, help="of classes, in B3RS")
    add("--q", type=float, default=0.5, help="0: equal blocks, 1: as the data")
    add("--epochs", type=int, default=100)
    add("--warmup-epochs", type=int, default=5)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=0.1)
    add("--weight-decay", type=float, default=5e-4)
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 0 <= options.warmup_epochs <= options.epochs:
        parser.error("expected 0 <= --warmup-epochs <= --epochs")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, and print the accuracies."""
    options = parse(arguments)
    torch.set_num_threads(1)  # images of a few pixels: more threads mostly wait for each other
    started = time.perf_counter()
    accuracies = train(options)
    print("test accuracy in %:", end="")
    print(*(f" {name} {100 * value:.1f}" for name, value in accuracies.items()), sep="")
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
