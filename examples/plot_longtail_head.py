"""
Whitening before the classifier of long-tailed data
===================================================

Few classes have most of the images, most classes have few. The features of such a network are
correlated, and its classifier has to undo that from few examples. Here the inputs of the
classifier are left as they are, normalised by batch normalisation (unit variance, correlations
remain) or whitened (no correlations), with two losses: cross-entropy, and cross-entropy with
logit adjustment (Menon et al., ICLR 2021), which asks for larger margins where classes are rare.

Data are scikit-learn's handwritten digits, small enough for five seeds of everything, and too
small to decide much: the output says what came out, with the spread over the seeds.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import fastwhiten

torch.set_num_threads(1)  # the matrices are tiny: more threads would wait for each other

# %%
# The long tail
# -------------
# Digit 0 keeps all of its training images, every following digit a fixed share of those of the
# one before. The test has as many images of every digit, so that rare ones count as much as
# frequent ones.

TEST_PER_CLASS, MOST, FEWEST, WIDTH = 50, 120, 4, 32
digits = load_digits()
images = torch.from_numpy(digits.data).float() / 16  # [1797, 64]
labels = torch.from_numpy(digits.target)  # [1797]
counts = np.geomspace(MOST, FEWEST, 10).round().astype(int)  # [10]
print("training images:", dict(enumerate(counts.tolist())))


def split(seed):
    """Return the images of a long-tailed training set and those of a balanced test."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    members = [order[labels[order] == digit] for digit in range(10)]
    test = torch.cat([of[:TEST_PER_CLASS] for of in members])
    pairs = zip(members, counts, strict=True)
    return torch.cat([of[TEST_PER_CLASS:][:count] for of, count in pairs]), test


# %%
# Three heads, two losses
# -----------------------
# The layer stands in front of the last one. Nothing else differs: the same initial weights,
# batches and learning rate, which is not tuned for any of them. A batch has four times as many
# rows as there are channels: with fewer rows than channels it would not span them all.

HEADS = {
    "none": nn.Identity,
    "BatchNorm1d": lambda: nn.BatchNorm1d(WIDTH, affine=False),
    "ChannelWhitening": lambda: fastwhiten.ChannelWhitening(WIDTH),
}
LOSSES = {"cross-entropy": 0.0, "logit adjustment": 1.0}
log_prior = torch.from_numpy(counts / counts.sum()).float().log()  # [10]


def train(head, tau, seed, steps=250, rows=4 * WIDTH):
    """Return a network that was trained on the long tail of a seed."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, WIDTH), nn.ReLU()]
    network = nn.Sequential(*layers, HEADS[head](), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, y = (data[split(seed)[0]] for data in (images, labels))
    for _ in range(steps):
        batch = torch.randperm(len(x))[:rows]
        logits = network(x[batch] + 0.1 * torch.randn(rows, 64))
        optimizer.zero_grad()
        functional.cross_entropy(logits + tau * log_prior, y[batch]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def recall(network, seed):
    """Return the share of each digit's test images that is recognised, ``[10]``."""
    test = split(seed)[1]
    right = network(images[test]).argmax(1) == labels[test]
    return right.view(10, TEST_PER_CLASS).float().mean(1).numpy()


SEEDS = range(5)
networks = {
    (head, loss): [train(head, tau, seed) for seed in SEEDS]
    for head in HEADS
    for loss, tau in LOSSES.items()
}
recalls = {  # [seeds, 10]
    key: np.stack([recall(*pair) for pair in zip(of_seeds, SEEDS, strict=True)])
    for key, of_seeds in networks.items()
}

# %%
# What came out
# -------------
# Accuracy on the balanced test in percent, the mean of the seeds with a 95 % interval (Student's
# t). Heads are compared seed by seed, for a seed is also a split of the data.


def interval(values):
    """Return the mean in percent, and half the length of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return 100 * values.mean(), 100 * half


accuracy = {key: of.mean(1) for key, of in recalls.items()}  # [seeds]
for loss in LOSSES:
    for head in HEADS:
        mean, half = interval(accuracy[head, loss])
        rare = 100 * recalls[head, loss][:, -3:].mean()
        print(f"{loss:17} {head:17} {mean:5.1f} +- {half:.1f}, the three rarest {rare:5.1f}")
for loss in LOSSES:
    for other in ("none", "BatchNorm1d"):
        mean, half = interval(accuracy["ChannelWhitening", loss] - accuracy[other, loss])
        verdict = "within the noise" if abs(mean) < half else "more than the noise"
        print(f"{loss}: whitening minus {other} {mean:+.1f} +- {half:.1f} points, {verdict}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for place, head in enumerate(HEADS):
    for shift, (loss, colour) in enumerate(zip(LOSSES, ("#0072B2", "#D55E00"), strict=True)):
        x = place + 0.2 * (shift - 0.5)
        label = loss if place == 0 else None
        axes[0].plot([x] * len(SEEDS), 100 * accuracy[head, loss], "o", color=colour, alpha=0.4)
        axes[0].plot(x, interval(accuracy[head, loss])[0], "_", ms=20, color=colour, label=label)
axes[0].set_xticks(range(3), HEADS)
axes[0].set(ylabel="accuracy on a balanced test, %", title="every seed, and their mean")
axes[0].legend(frameon=False)
for head, style in zip(HEADS, (":", "--", "-"), strict=True):
    for loss, colour in zip(LOSSES, ("#0072B2", "#D55E00"), strict=True):
        mean = 100 * recalls[head, loss].mean(0)
        axes[1].plot(mean, style, color=colour, label=f"{head}, {loss}")
axes[1].set(xlabel="digit, most frequent first", ylabel="recall, %", title="digit by digit")
axes[1].set_xticks(range(10))
axes[1].legend(frameon=False, fontsize=7)
plt.show()

# %%
# The classifier's inputs
# -----------------------
# Correlations of the features of the training images, before and after the layer in evaluation,
# where it uses its running statistics. Batch normalisation scales and shifts, which no
# correlation sees. Whitening removes them, up to what running statistics differ from those of the
# training set.


@torch.no_grad()
def correlations(network, seed, layers):
    """Return the correlations ``[C, C]`` of what the first layers make of the training images."""
    features = network[:layers](images[split(seed)[0]]).double()  # [N, C]
    varying = features.std(0) > 1e-6  # a unit of a ReLU may never be active
    return torch.corrcoef(features[:, varying].T)


def typical(matrix):
    """Return the root mean square of what is not on the diagonal."""
    size = len(matrix)
    return ((matrix.square().sum() - size) / (size * (size - 1))).sqrt().item()


figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for pair, head in zip(axes.reshape(2, 2), ("BatchNorm1d", "ChannelWhitening"), strict=True):
    network = networks[head, "cross-entropy"][0]
    before, after = (correlations(network, 0, layers) for layers in (4, 5))
    print(f"{head}: correlation {typical(before):.3f} before, {typical(after):.3f} after")
    if head == "BatchNorm1d":
        assert torch.allclose(before, after, atol=1e-4)
    else:
        assert typical(after) < typical(before) / 3
    for axis, matrix, when in zip(pair, (before, after), ("before", "after"), strict=True):
        shown = axis.imshow(matrix.numpy(), cmap="RdBu", vmin=-1, vmax=1)
        axis.set_title(f"{when} {head}", fontsize=9)
figure.colorbar(shown, ax=axes, label="correlation", shrink=0.8)
plt.show()
