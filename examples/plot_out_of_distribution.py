"""
Which images are of no known class?
===================================

A classifier answers with one of its classes, whatever it is shown. A whitening layer before its
last one knows the mean and the covariance of the features: what lies far from all class means, in
the distance that this covariance defines (Mahalanobis), was probably not in the training data. Of
features that the layer has whitened it is the plain Euclidean distance. It costs nothing more
than the class means. arXiv 2605.17799 reports what such distances gain for models of long-tailed
data, with one pooled covariance of features of unit length; both are compared here with the usual
score, the largest of the softmax's probabilities.
"""

import gzip
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn
from torch.nn import functional

import fastwhiten

torch.set_num_threads(1)  # the matrices are tiny: more threads would wait for each other

# %%
# Known and unknown images
# ------------------------
# Digits 0 to 7 are known, with a long tail. Unknown are the digits 8 and 9 (near: other strokes
# of the same pen), pieces of photographs, and clothes (far), where Debian's package of
# Fashion-MNIST is installed.

KNOWN, TEST_PER_CLASS, WIDTH = 8, 50, 64
digits = load_digits()
images = torch.from_numpy(digits.data).float() / 16  # [1797, 64]
labels = torch.from_numpy(digits.target)  # [1797]
counts = np.geomspace(120, 6, KNOWN).round().astype(int)  # [8]

photographs = torch.tensor(np.stack(load_sample_images().images)).float().mean(3) / 255  # [2, h, w]
pieces = functional.avg_pool2d(photographs[:, None], 4).unfold(2, 8, 8).unfold(3, 8, 8)
foreign = {
    "digits 8 and 9": images[labels >= KNOWN],
    "photographs": pieces.reshape(-1, 64),
}
clothes = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
if clothes.exists():
    pixels = np.frombuffer(gzip.decompress(clothes.read_bytes()), np.uint8, offset=16)
    pixels = torch.from_numpy(pixels[: 500 * 784].reshape(-1, 1, 28, 28).copy()).float() / 255
    foreign["clothes"] = functional.adaptive_avg_pool2d(pixels, 8).flatten(1)
else:
    print(f"without clothes: {clothes} is not there")
print("known digits, training images:", dict(enumerate(counts.tolist())))
print("unknown:", ", ".join(f"{len(x)} of {name}" for name, x in foreign.items()))

# %%
# A classifier with a whitening layer
# -----------------------------------


def split(seed):
    """Return the indices of a long-tailed training set and those of a balanced test."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    members = [order[labels[order] == digit] for digit in range(KNOWN)]
    pairs = zip(members, counts, strict=True)
    train = torch.cat([of[TEST_PER_CLASS:][:count] for of, count in pairs])
    return train, torch.cat([of[:TEST_PER_CLASS] for of in members])


def train(x, y, seed, steps=250, rows=4 * WIDTH):
    """Return features, whitening layer and classifier, trained and in evaluation mode."""
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, WIDTH))
    parts = nn.Sequential(features, fastwhiten.ChannelWhitening(WIDTH), nn.Linear(WIDTH, KNOWN))
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randperm(len(x))[:rows]
        logits = parts(x[batch] + 0.1 * torch.randn(rows, 64))
        optimizer.zero_grad()
        functional.cross_entropy(logits, y[batch]).backward()
        optimizer.step()
        schedule.step()
    return parts.eval()


# %%
# Three scores
# ------------
# Each is higher for images that look foreign. Softmax is unsure between classes, wherever that
# is; a distance is large away from all of them, also where softmax is sure. Neither sees what the
# other does. The layer's covariance is a running average of the training batches, around the mean
# of all classes; the pooled one is around the mean of each class, of features of unit length,
# with a ridge.


def nearest(features, means):
    """Return the squared distance to the nearest mean, ``[N]``."""
    return torch.cdist(features, means).amin(1).square()


def class_means(features, y):
    """Return the means ``[K, C]``."""
    return torch.stack([features[y == k].mean(0) for k in range(KNOWN)])


@torch.no_grad()
def scores(parts, x, train_x, train_y):
    """Return the three scores of images ``x``, ``[N]`` each."""
    features, layer, _ = parts
    known, shown = features(train_x), features(x)  # [M, C], [N, C]
    found = {"maximum softmax": -parts(x).softmax(1).amax(1)}
    found["running covariance"] = nearest(layer(shown), class_means(layer(known), train_y))
    known, shown = functional.normalize(known), functional.normalize(shown)
    means = class_means(known, train_y)
    covariance = fastwhiten.batch_statistics(known - means[train_y])[1]  # [1, C, C]
    ridge = 1e-3 * covariance.diagonal(dim1=1, dim2=2).mean().item()
    matrix = fastwhiten.whitening_matrix(covariance, eps=ridge)[0]
    found["pooled, unit length"] = nearest(shown @ matrix, means @ matrix)
    return found


SEEDS = range(5)
found = {}  # (score, unknown images) to pairs of scores, a seed each
for seed in SEEDS:
    train_index, test_index = split(seed)
    train_x, train_y = images[train_index], labels[train_index]
    parts = train(train_x, train_y, seed)
    right = (parts(images[test_index]).argmax(1) == labels[test_index]).float().mean()
    print(f"seed {seed}: {100 * right:.1f} % of the known digits are recognised")
    inside = scores(parts, images[test_index], train_x, train_y)
    for name, x in foreign.items():
        for score, outside in scores(parts, x, train_x, train_y).items():
            found.setdefault((score, name), []).append((inside[score], outside))

# %%
# Whitening has not hidden anything: the distance of whitened features is Mahalanobis' distance
# with the layer's running covariance.

with torch.no_grad():
    features, layer, _ = parts
    x, y = (features(images[index]).double() for index in (train_index[:20], test_index[:20]))
    precision = torch.linalg.inv(layer.running_cov[0].double() + layer.eps * torch.eye(WIDTH))
    mahalanobis = torch.einsum("nc,cd,nd->n", x - y, precision, x - y)
    euclidean = (layer(x.float()) - layer(y.float())).square().sum(1)
assert torch.allclose(mahalanobis, euclidean.double(), rtol=1e-3)

# %%
# What came out
# -------------
# The area under the ROC curve: the probability that an unknown image has a higher score than a
# known one. One half is guessing. Mean of five seeds with a 95 % interval (Student's t).


def interval(values):
    """Return the mean, and half the length of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean(), half


def curve(inside, outside, grid):
    """Return how many unknown images are noticed, for a share of false alarms."""
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    alarms, noticed, _ = roc_curve(truth, torch.cat([inside, outside]).numpy())
    return np.interp(grid, alarms, noticed), roc_auc_score(truth, torch.cat([inside, outside]))


grid = np.linspace(0, 1, 201)
size = 3.6 * len(foreign), 3.6
figure, axes = plt.subplots(1, len(foreign), figsize=size, layout="constrained")
areas = {}
COLOURS = {
    "maximum softmax": "#666666",
    "running covariance": "#D55E00",
    "pooled, unit length": "#0072B2",
}
for axis, name in zip(axes, foreign, strict=True):
    for score, colour in COLOURS.items():
        curves, of_seeds = zip(*(curve(*pair, grid) for pair in found[score, name]), strict=True)
        areas[score, name] = np.array(of_seeds)
        mean, half = interval(areas[score, name])
        print(f"{name:15} {score:20} AUROC {mean:.3f} +- {half:.3f}")
        axis.plot(grid, np.mean(curves, 0), color=colour, label=f"{score}, {mean:.3f}")
    axis.plot([0, 1], [0, 1], ":", color="#BBBBBB")
    axis.set(title=name, xlabel="false alarms", ylabel="noticed")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
plt.show()

# %%
# Seed by seed, against the softmax:

for name in foreign:
    for score in ("running covariance", "pooled, unit length"):
        mean, half = interval(areas[score, name] - areas["maximum softmax", name])
        verdict = "within the noise" if abs(mean) < half else "more than the noise"
        print(f"{name}, {score}: {mean:+.3f} +- {half:.3f}, {verdict}")
pooled, softmax = (
    areas[s, "photographs"].mean() for s in ("pooled, unit length", "maximum softmax")
)
assert pooled > softmax
