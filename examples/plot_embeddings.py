"""
Whitening embeddings for retrieval
==================================

Embeddings of language models are anisotropic: all share a large mean, and a few directions have
most of the variance, among them some that say how frequent or how long a text is rather than what
it means. A cosine sees little else. BERT-whitening (Su et al., arXiv 2103.15316) subtracts the
mean, divides by the deviations along the principal directions, and drops the last ones, which are
noise.

:class:`fastwhiten.Whitener` does it in one pass over a stream. Embeddings are made here, so that
it is known which texts mean the same; real data without known meanings, scikit-learn's digits,
come last.
"""

import pickle
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

import fastwhiten

draw = np.random.default_rng(0)

# %%
# Anisotropic embeddings with a known meaning
# -------------------------------------------
# Meanings are isotropic, ``[n, 32]``. An embedding is their image under a linear map whose
# singular values span two orders of magnitude, a common mean, two directions of large variance
# that mean nothing, and noise in all 256. So it is what whitening can undo: how far it does is
# what is measured.

MEANING, WIDTH, NUISANCE, NOISE = 32, 256, 2, 0.02
directions = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))[0]
meaning_map = np.geomspace(3, 0.03, MEANING)[:, None] * directions[:MEANING]  # [32, 256]
nuisance_map = 5 * directions[MEANING : MEANING + NUISANCE]  # [2, 256]
common = 8 * directions.sum(0) / np.sqrt(WIDTH)  # [256]


def embed(meanings):
    """Return embeddings ``[n, 256]`` float32 of meanings ``[n, 32]``."""
    nuisance = draw.normal(size=(len(meanings), NUISANCE)) @ nuisance_map
    noise = NOISE * draw.normal(size=(len(meanings), WIDTH))
    return (meanings @ meaning_map + nuisance + common + noise).astype(np.float32)


meanings = draw.normal(size=(2000, MEANING))
documents = embed(meanings)
# A query means nearly the same as its document.
queries = embed(0.95 * meanings + np.sqrt(1 - 0.95**2) * draw.normal(size=meanings.shape))

# %%
# Fitting to a stream
# -------------------
# ``partial_fit`` takes batch after batch and keeps nothing but moments, in float64. Whiteners
# that have read different files can be merged: the result is that of one pass. Of
# ``n_components`` and the other parameters only the matrices depend, which follow without reading
# again.

whitener = fastwhiten.Whitener(kind="pca")
first, second = fastwhiten.Whitener(), fastwhiten.Whitener()
for batch in range(20):
    rows = embed(draw.normal(size=(1000, MEANING)))
    whitener.partial_fit(rows)
    (first if batch < 12 else second).partial_fit(rows)
merged = first.merge(second)
assert merged.n_samples_seen_ == whitener.n_samples_seen_ == 20_000
assert np.allclose(merged.covariance_, whitener.covariance_, rtol=1e-9, atol=1e-9)

white = whitener.transform(documents).astype(float)
error = np.abs(np.cov(white.T) - np.eye(WIDTH)).mean()
condition = np.linalg.cond(whitener.covariance_)
print(f"{whitener.n_samples_seen_} rows read, condition number {condition:.0f}")
print(f"new rows, whitened: the covariance is the identity up to {error:.3f} on average")

# %%
# Does the cosine know the meaning?
# ---------------------------------
# Two measures: Spearman's correlation of the cosines of random pairs with those of their meanings
# (as in the benchmarks of sentence similarity), and how often the nearest document of a query is
# its own.


def unit(x):
    """Return rows of unit length."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


left, right = draw.integers(len(meanings), size=(2, 20_000))
truth = (unit(meanings)[left] * unit(meanings)[right]).sum(1)


def measure(of_documents, of_queries):
    """Return Spearman's correlation of the cosines with the truth, and the recall at 1."""
    of_documents, of_queries = unit(of_documents), unit(of_queries)
    cosines = (of_documents[left] * of_documents[right]).sum(1)
    nearest = (of_queries @ of_documents.T).argmax(1)
    return spearmanr(cosines, truth).statistic, (nearest == np.arange(len(nearest))).mean()


found = {"as they are": measure(documents, queries)}
mean = whitener.mean_.numpy()
found["centred"] = measure(documents - mean, queries - mean)
kept = [8, 16, 24, 32, 34, 36, 40, 48, 64, 128, 256]
for n_components in kept:
    whitener.set_params(n_components=n_components)
    found[n_components] = measure(*map(whitener.transform, (documents, queries)))
for name, (correlation, recall) in found.items():
    label = name if isinstance(name, str) else f"white, {name} components"
    print(f"{label:21} Spearman {correlation:.3f}, recall at 1 {recall:.3f}")
best = max(kept, key=lambda n_components: found[n_components][1])
print(f"{best} components have the best recall, of {MEANING} with a meaning and {NUISANCE} without")
assert found[best][0] > found["centred"][0] > found["as they are"][0]
assert found[best][1] > found["centred"][1]

# %%
# Whitening makes directions equal, whatever they mean. The small ones of the meaning count then,
# and those without a meaning count no more than others; but once all of them are kept, noise
# counts as much. That is what ``n_components`` is for.

whitener.set_params(n_components=best)
similarity = {
    "as they are": unit(documents),
    f"white, {best} components": unit(whitener.transform(documents)),
}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axis, (name, rows) in zip(axes, similarity.items(), strict=False):
    cosines = (rows[left] * rows[right]).sum(1)
    axis.plot(truth[::10], cosines[::10], ".", ms=2, color="#0072B2")
    axis.set(xlabel="cosine of the meanings", ylabel="cosine of the embeddings", title=name)
    axis.set(xlim=(-0.8, 0.8), ylim=(-1, 1))
for index, (name, colour) in enumerate((("Spearman", "#0072B2"), ("recall at 1", "#D55E00"))):
    axes[2].plot(kept, [found[n][index] for n in kept], "o-", color=colour, label=f"{name}, white")
    axes[2].axhline(found["centred"][index], color=colour, ls=":", label=f"{name}, centred")
axes[2].set(xscale="log", xlabel="components kept")
axes[2].set_xticks([8, 16, 32, 64, 128, 256], [8, 16, 32, 64, 128, 256])
axes[2].minorticks_off()
axes[2].legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1))
plt.show()

# %%
# Keeping what was fitted
# -----------------------
# A file of safetensors has moments, matrices and parameters: fitting can go on from it, and other
# programs can read the matrices. Pickle works too.

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "whitener.safetensors")
    whitener.save(path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    loaded = fastwhiten.Whitener.load(path)
for copy in (loaded, pickle.loads(pickle.dumps(whitener))):
    assert np.array_equal(copy.transform(queries), whitener.transform(queries))

# %%
# Where directions of large variance carry the meaning
# ----------------------------------------------------
# Pixels of handwritten digits, with the digit as the meaning: of the five nearest training images
# of a test image, how many show the same digit? No direction here is without meaning, and
# whitening gives weight to those that say least. The picture says whether it is worth it.

digits = load_digits()
pixels, labels = digits.data.astype(np.float32), digits.target
test = draw.permutation(len(pixels)) < 500


def precision(x):
    """Return the share of the five nearest training images that show the same digit."""
    rows = unit(x)
    nearest = np.argsort(-rows[test] @ rows[~test].T, axis=1)[:, :5]
    return (labels[~test][nearest] == labels[test][:, None]).mean()


whitener = fastwhiten.Whitener(kind="pca").fit(pixels[~test])
kept = [2, 4, 8, 12, 16, 24, 32, 48, whitener.rank_]
plain = precision(pixels - whitener.mean_.numpy())
white = [precision(whitener.set_params(n_components=n).transform(pixels)) for n in kept]
share = np.max(white) - plain
print(f"{whitener.n_features_in_} pixels, {kept[-1]} directions that vary")
print(f"precision at 5: centred {plain:.3f}, white at best {np.max(white):.3f} ({share:+.3f})")

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.plot(kept, white, "o-", color="#D55E00", label="white")
axis.axhline(plain, color="#0072B2", ls=":", label="centred, all pixels")
axis.set(xlabel="components kept", ylabel="precision at 5", title="digits")
axis.legend(frameon=False)
plt.show()
