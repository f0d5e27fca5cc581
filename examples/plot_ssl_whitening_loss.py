"""
A self-supervised loss that cannot collapse
===========================================

Two views of an image should have similar embeddings. Alone this is easy: an encoder that says the
same of every image has no loss. Contrastive methods push embeddings of different images apart.
W-MSE (Ermolov et al., ICML 2021) whitens the batch of embeddings instead: they then have unit
variance in every direction, whatever the encoder does, and no negative pairs are needed. The
gradient flows through the whitening.

Images are scikit-learn's digits, put at a random place of a larger image. Labels are used for
nothing but to measure what the encoder has learned.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

import fastwhiten

torch.set_num_threads(1)  # the matrices are tiny: more threads would wait for each other

# %%
# Images and views
# ----------------
# A view is the digit at a place of its own, with a contrast of its own and noise.

SIZE, TRAIN = 12, 1297
digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.from_numpy(digits.images).float()[order] / 16  # [1797, 8, 8]
labels = digits.target[order]


def view(x):
    """Return ``[N, 1, 12, 12]``: every image of ``[N, 8, 8]`` at a random place."""
    rows, columns = (torch.randint(0, SIZE - 7, (len(x), 1)) + torch.arange(8) for _ in range(2))
    canvas = torch.zeros(len(x), SIZE, SIZE)
    contrast = 0.6 + 0.4 * torch.rand(len(x), 1, 1)
    place = torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
    canvas[place] = contrast * x
    return (canvas + 0.1 * torch.randn_like(canvas))[:, None]


torch.manual_seed(0)
figure, axes = plt.subplots(2, 8, figsize=(8, 2.1), layout="constrained")
for row in axes:
    for axis, image in zip(row, view(images[:8]), strict=True):
        axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
figure.suptitle("two views of the same digits")
plt.show()

# %%
# The loss
# --------
# The batch is cut at random into parts of 64 rows, four times the width of an embedding, as the
# paper does: each part, and each view, is whitened by itself. One call does all of them: parts
# lie side by side as groups of channels. Then embeddings get unit length and their squared
# distance is the loss.

WIDTH, PART = 16, 64


def parts_of(first, second):
    """Return two views ``[N, D]`` as parts ``[2 N / 64, 64, D]``, the same rows of both."""
    shuffled = torch.stack([first, second])[:, torch.randperm(len(first))]
    return shuffled.reshape(-1, PART, WIDTH)


def distance(parts):
    """Return the mean squared distance of the two views, at unit length."""
    first, second = functional.normalize(parts, dim=-1).chunk(2)
    return (first - second).square().sum(-1).mean()


def whitened(parts, kind="cholesky", eps=1e-4):
    """Whiten every part ``[P, 64, D]`` by itself, by one call."""
    side_by_side = parts.transpose(0, 1).reshape(PART, -1)  # [64, P D]
    white = fastwhiten.whiten(side_by_side, groups=len(parts), kind=kind, eps=eps)
    return white.reshape(PART, -1, WIDTH).transpose(0, 1)


def whitened_by_torch(parts, eps=1e-4):
    """Do the same by ``torch.linalg`` and autograd."""
    centred = parts - parts.mean(1, keepdim=True)
    covariance = centred.mT @ centred / PART + eps * torch.eye(WIDTH).to(parts)
    root = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(root, centred.mT, upper=False).mT


# %%
# Both have the same gradient, to rounding. How their times compare depends on the machine: each
# has the best of many calls.


def loss_and_gradient(whiten, x):
    """Return loss and gradient for parts ``x``."""
    x = x.clone().requires_grad_()
    loss = distance(whiten(x))
    return loss.detach(), torch.autograd.grad(loss, x)[0]


first = torch.randn(256, WIDTH) * torch.linspace(0.3, 3, WIDTH)
example = parts_of(first, first + torch.randn(256, WIDTH))
ours, theirs = (loss_and_gradient(f, example)[1] for f in (whitened, whitened_by_torch))
truth = loss_and_gradient(whitened_by_torch, example.double())[1]
for name, gradient in (("fastwhiten", ours), ("torch", theirs)):
    error = ((gradient - truth).norm() / truth.norm()).item()
    print(f"{name:10} error of the gradient against float64: {error:.1e}")
    assert error < 1e-4

best = {}
for _ in range(200):
    for whiten in (whitened, whitened_by_torch):
        begin = time.perf_counter()
        loss_and_gradient(whiten, example)
        seconds = time.perf_counter() - begin
        best[whiten] = min(seconds, best.get(whiten, seconds))
ratio = best[whitened_by_torch] / best[whitened]
print(f"loss and gradient by torch take {ratio:.2f} times as long as by fastwhiten")

# %%
# Training
# --------
# The same encoder, batches and steps, with and without whitening; by Cholesky's root, as in the
# paper, and by ZCA.

LOSSES = {
    "no whitening": lambda x: x,
    "W-MSE, Cholesky": whitened,
    "W-MSE, ZCA": lambda x: whitened(x, "zca"),
}


def new_encoder():
    """Return an encoder and the projection that the loss sees."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
    )
    return encoder, nn.Linear(128, WIDTH)


def train(whiten, steps=400, rows=256):
    """Return encoder and projection, and the loss of every step."""
    encoder, projection = new_encoder()
    network = nn.Sequential(encoder, projection)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        batch = images[torch.randperm(TRAIN)[:rows]]
        embeddings = network(torch.cat([view(batch), view(batch)]))
        loss = distance(whiten(parts_of(*embeddings.chunk(2))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return encoder, projection, losses


trained = {"random features": (*new_encoder(), [])}
fastwhiten.update_statistics(trained["random features"][0], [view(images[:TRAIN])])
trained |= {name: train(whiten) for name, whiten in LOSSES.items()}

# %%
# What the encoders have learned
# ------------------------------
# Five nearest neighbours and a linear classifier, on features before the projection, of one view
# of every image. Collapse shows in the eigenvalues of the embeddings' covariance: one of them has
# all the variance. The exponential of their entropy counts the directions that matter (Roy and
# Vetterli, EUSIPCO 2007).

torch.manual_seed(1)
views = view(images)
accuracy, spectra, directions = {}, {}, {}
for name, (encoder, projection, _) in trained.items():
    with torch.no_grad():
        features = encoder.eval()(views)
        covariance = fastwhiten.batch_statistics(projection(features))[1][0]  # [16, 16]
    spectra[name] = torch.linalg.eigvalsh(covariance / covariance.trace()).flip(0).clamp(min=1e-9)
    directions[name] = (-(spectra[name] * spectra[name].log()).sum()).exp().item()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    accuracy[name] = []
    for classifier in (KNeighborsClassifier(5), probe):
        classifier.fit(features[:TRAIN], labels[:TRAIN])
        accuracy[name].append(100 * classifier.score(features[TRAIN:], labels[TRAIN:]))
    percent = "neighbours {:.1f} %, linear {:.1f} %".format(*accuracy[name])
    print(f"{name:16} {percent}, {directions[name]:.1f} directions of {WIDTH}")
for name in ("W-MSE, Cholesky", "W-MSE, ZCA"):
    assert directions[name] > 2 * directions["no whitening"]
    assert accuracy[name][0] > accuracy["random features"][0]

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
colours = dict(zip(trained, ("#666666", "#0072B2", "#D55E00", "#009E73"), strict=True))
for name, (_, _, losses) in trained.items():
    if losses:
        axes[0].plot(losses, color=colours[name], label=name)
    shares = spectra[name].tolist()
    axes[1].plot(range(1, WIDTH + 1), shares, "o-", ms=3, color=colours[name], label=name)
axes[0].set(xlabel="step", ylabel="loss", title="no loss is not the aim")
axes[1].set(xlabel="direction", ylabel="share of the variance", yscale="log", title="embeddings")
axes[1].legend(frameon=False, fontsize=8)
for shift, (index, kind) in enumerate(((0, "5 neighbours"), (1, "linear"))):
    heights = [of[index] for of in accuracy.values()]
    places = np.arange(len(accuracy)) + 0.4 * shift
    axes[2].bar(places, heights, 0.38, label=kind, color=("#56B4E9", "#E69F00")[shift])
axes[2].set_xticks(np.arange(len(accuracy)) + 0.2, [n.replace(" ", "\n", 1) for n in accuracy])
axes[2].set(ylabel="accuracy, %", title="features, measured with labels")
axes[2].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()
