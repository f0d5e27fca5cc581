"""
Decorrelated batch normalisation in a residual network
======================================================

Batch normalisation gives every channel unit variance and leaves channels correlated. Decorrelated
batch normalisation (Huang et al., CVPR 2018) whitens them, in groups, so that a batch has many
more rows than a group has channels. The next layer's inputs are then well-conditioned, and
gradient descent gets further in as many steps.

Here :func:`fastwhiten.replace_batchnorm` puts whitening in the place of every ``nn.BatchNorm2d``
of a small residual network in the style of He et al.'s for CIFAR.
"""

import gzip
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import fastwhiten

# %%
# Images
# ------
# Fashion-MNIST at half its size, where Debian's package is installed, else scikit-learn's digits.

TRAIN, TEST = 2560, 2000
folder = Path("/usr/share/datasets/fashion-mnist")


def fashion(part, count):
    """Return images ``[count, 1, 14, 14]`` and labels of a part of Fashion-MNIST."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset).copy()
        for name, offset in (
            (f"{part}-images-idx3-ubyte.gz", 16),
            (f"{part}-labels-idx1-ubyte.gz", 8),
        )
    )
    pixels = torch.from_numpy(pixels[: count * 784]).view(count, 1, 28, 28).float() / 255
    return functional.avg_pool2d(pixels, 2), torch.from_numpy(labels[:count]).long()


if folder.exists():
    (x, y), (test_x, test_y) = fashion("train", TRAIN), fashion("t10k", TEST)
    print(f"Fashion-MNIST: {len(x)} training and {len(test_x)} test images")
else:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16
    pixels, labels = functional.interpolate(pixels, size=(14, 14)), torch.from_numpy(digits.target)
    (x, test_x), (y, test_y) = pixels.split([1280, 517]), labels.split([1280, 517])
    print(f"digits, for {folder} is not there: {len(x)} training and {len(test_x)} test images")
mean, deviation = x.mean(), x.std()
x, test_x = (x - mean) / deviation, (test_x - mean) / deviation

# %%
# The network, and the replacement
# --------------------------------


class Block(nn.Module):
    """Two convolutions and a shortcut; where channels are added the shortcut has zeros."""

    def __init__(self, before, after):
        """Halve the image where channels are added."""
        super().__init__()
        self.stride, self.added = after // before, after - before
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x):
        """``[N, C, H, W]`` to ``[N, C', H', W']``."""
        found = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(found + functional.pad(shortcut, (0, 0, 0, 0, 0, self.added)))


def resnet():
    """Return a network of eight layers."""
    stem = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = Block(16, 16), Block(16, 32), Block(32, 64)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def decorrelated():
    """Return the network with whitening in groups of 16 channels."""
    model = resnet()
    fastwhiten.replace_batchnorm(model, group_size=16, eps=1e-3)
    return model


print(decorrelated()[4])

# %%
# Training
# --------
# Same initial weights and learning rates for both, and the same batches. A step with whitening
# takes longer, so batch normalisation has a second try with more epochs.

BATCH, SEEDS = 128, range(2)


@torch.no_grad()
def accuracy(model):
    """Return the share of test images that is recognised, in percent."""
    model.eval()
    right = torch.cat([model(part).argmax(1) for part in test_x.split(500)]) == test_y
    model.train()
    return 100 * right.float().mean().item()


def train(make, epochs, seed):
    """Return the model, its losses, the test's accuracy of every epoch, and the cost of a step."""
    torch.manual_seed(seed)
    model = make()
    torch.manual_seed(seed)
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, accuracies, seconds = [], [], []
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            begin = time.process_time()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seconds.append(time.process_time() - begin)
            losses.append(loss.item())
        accuracies.append(accuracy(model))
    return model, losses, accuracies, np.median(seconds)


MODELS = {
    "BatchNorm2d": (resnet, 5),
    "BatchNorm2d, longer": (resnet, 8),
    "ChannelWhitening": (decorrelated, 5),
}
runs = {name: [train(*of, seed) for seed in SEEDS] for name, of in MODELS.items()}

# %%
# What came out
# -------------

losses = {name: np.array([run[1] for run in of]) for name, of in runs.items()}  # [seeds, steps]
tested = {name: np.array([run[2] for run in of]) for name, of in runs.items()}  # [seeds, epochs]
for name in MODELS:
    last = losses[name][:, -(len(x) // BATCH) :].mean()
    ends = " and ".join(f"{of[-1]:.1f}" for of in tested[name])
    print(f"{name:19} loss of the last of {MODELS[name][1]} epochs {last:.3f}, test {ends} %")
for name in ("BatchNorm2d", "BatchNorm2d, longer"):
    gains = tested["ChannelWhitening"][:, -1] - tested[name][:, -1]
    verdict = "both seeds agree" if np.ptp(np.sign(gains)) == 0 else "the seeds disagree"
    print(f"whitening minus {name}: {gains.mean():+.1f} points, {verdict}")
white, plain = (min(run[3] for run in runs[name]) for name in ("ChannelWhitening", "BatchNorm2d"))
print(f"a step with whitening took {white / plain:.2f} times as much of the processor's time")
for name in MODELS:
    assert losses[name][:, -10:].mean() < losses[name][:, :10].mean() / 2

# %%
# Why: the covariance of what a convolution gets to see. Of white channels in groups of 16 the
# blocks on the diagonal are the identity; between groups, and after the ReLU, correlations
# remain.


@torch.no_grad()
def seen(model):
    """Return the correlations of the channels behind the first normalisation of the last block."""
    model.eval()
    block = model[5]
    channels = block.norm1(block.conv1(model[:5](test_x[:1000])))  # [N, 64, h, w]
    return torch.corrcoef(channels.movedim(1, 0).flatten(1)).numpy()


COLOURS = {
    "BatchNorm2d": "#0072B2",
    "BatchNorm2d, longer": "#56B4E9",
    "ChannelWhitening": "#D55E00",
}
figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
smooth = np.ones(8) / 8
for name, colour in COLOURS.items():
    for seed in SEEDS:
        label = name if seed == 0 else None
        curve = np.convolve(losses[name][seed], smooth, "valid")
        axes[0].plot(curve, color=colour, alpha=0.8, label=label)
        axes[1].plot(range(1, MODELS[name][1] + 1), tested[name][seed], "o-", color=colour)
axes[0].set(xlabel="step", ylabel="training loss, mean of 8 steps", yscale="log", title="training")
axes[1].set(xlabel="epoch", ylabel="accuracy, %", title="test")
axes[0].legend(frameon=False, fontsize=8)
inside = np.kron(np.eye(4), np.ones((16, 16))).astype(bool) & ~np.eye(64, dtype=bool)
size = {}
for axis, name in zip(axes[2:], ("BatchNorm2d", "ChannelWhitening"), strict=True):
    matrix = seen(runs[name][0][0])
    size[name] = np.sqrt((matrix[inside] ** 2).mean())
    print(f"{name:16} correlation inside of groups {size[name]:.3f}")
    shown = axis.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_title(f"channels behind {name}", fontsize=9)
figure.colorbar(shown, ax=axes[2:], label="correlation", shrink=0.8)
assert size["ChannelWhitening"] < size["BatchNorm2d"] / 2
plt.show()
