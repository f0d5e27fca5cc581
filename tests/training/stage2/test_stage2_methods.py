"""What each method writes, against numpy on the features of the frozen model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from training.commands.eval import evaluate_run
from training.evaluation.evaluate import collect_features
from training.runs.checkpoint import load_checkpoint
from training.runs.finished import Run, restore_dataset, restore_model
from training.stage2.batches import ClassBalancedBatches
from training.stage2.material import SAMPLER, derive_seed

Stage2 = Callable[..., Run]


def _features(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Whitened features float64 [N, D] and labels [N]."""
    dataset = restore_dataset(run)
    model = restore_model(run, dataset.channels, "last", torch.device("cpu"))
    images = getattr(dataset, split)
    features = collect_features(model, dataset, images)[1]
    return features.double().numpy(), images.labels.numpy()


def _classifier(run: Run, checkpoint: str = "last") -> tuple[np.ndarray, np.ndarray]:
    model = load_checkpoint(run.folder.checkpoint(checkpoint))["model"]
    return tuple(model[f"classifier.{name}"].double().numpy() for name in ("weight", "bias"))


def _balanced(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([(predictions[labels == k] == k).mean() for k in range(10)]))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("crt", {"epochs": 1}),
        ("lws", {"epochs": 1, "cache_features": True}),
        ("los", {"epochs": 1, "cache_features": True}),
        ("tau-norm", {}),
        ("logit-adjustment", {"taus": [1.0], "adjustment": "multiplicative"}),
        ("ncm", {"distance": "euclidean"}),
    ],
)
def test_only_the_classifier_changes(run: Run, stage2: Stage2, method: str, options: dict):
    before = load_checkpoint(run.folder.checkpoint("last"))["model"]
    after = load_checkpoint(stage2(method, **options).folder.checkpoint("last"))["model"]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}  # not the running statistics


def test_tau_is_chosen_by_the_validation_accuracy_of_numpy(run: Run, stage2: Stage2):
    features, labels = _features(run, "validation")
    weight, _ = _classifier(run)
    scores, losses = [], []
    for step in range(21):
        scaled = weight / np.linalg.norm(weight, axis=1, keepdims=True) ** (step / 10)
        logits = features @ scaled.T
        scores.append(_balanced(logits.argmax(1), labels))
        log_sum = np.log(np.exp(logits).sum(1))
        losses.append(float((log_sum - logits[np.arange(len(labels)), labels]).mean()))
    result = stage2("tau-norm")
    candidates = result.summary["stage2"]["candidates"]
    assert [c["tau"] for c in candidates] == [step / 10 for step in range(21)]
    assert [c["balanced_accuracy"] for c in candidates] == pytest.approx(scores, abs=1e-12)
    assert [c["loss"] for c in candidates] == pytest.approx(losses, rel=1e-5)
    best = max(range(21), key=lambda i: (round(scores[i], 9), -losses[i]))
    assert len(set(scores)) > 1
    assert result.summary["stage2"]["tau"] == best / 10
    expected = weight / np.linalg.norm(weight, axis=1, keepdims=True) ** (best / 10)
    np.testing.assert_allclose(_classifier(result)[0], expected, rtol=1e-6)
    assert (_classifier(result)[1] == 0).all()
    assert result.summary["last"] == result.summary["best"]


def test_tau_zero_is_the_run_but_for_the_bias(run: Run, stage2: Stage2):
    weight, bias = _classifier(run)
    kept = stage2("tau-norm", taus=[0.0], bias="keep")
    assert all(np.array_equal(a, b) for a, b in zip(_classifier(kept), (weight, bias), strict=True))
    assert kept.summary["last"]["test"] == run.summary["last"]["test"]
    dropped = stage2("tau-norm", taus=[0.0])
    assert np.array_equal(_classifier(dropped)[0], weight)
    features, labels = _features(run, "test")
    expected = _balanced((features @ weight.T).argmax(1), labels)
    assert dropped.summary["last"]["test"]["balanced_accuracy"] == pytest.approx(
        expected, abs=1e-12
    )


def test_a_backbone_in_training_mode_takes_the_statistics_of_its_batches(run: Run, stage2: Stage2):
    before = load_checkpoint(run.folder.checkpoint("last"))["model"]
    made = stage2("crt", epochs=2, backbone="train")
    after = load_checkpoint(made.folder.checkpoint("last"))["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {n for n in before if "running_" in n or n.endswith("num_batches_tracked")}
    assert changed == statistics | {"classifier.weight", "classifier.bias"}
    steps = made.summary["last"]["epoch"] * (342 // 64)
    counts = [n for n in before if n.endswith("num_batches_tracked")]
    assert all(after[n] - before[n] == steps for n in counts)
    # What is reported of either checkpoint is of its own statistics.
    for checkpoint in ("last", "best"):
        assert evaluate_run(made, "test", checkpoint)["equals_summary"] is True
        assert evaluate_run(made, "validation", checkpoint)["equals_summary"] is True


def test_logit_adjustment_is_the_paper_s(run: Run, stage2: Stage2):
    weight, bias = _classifier(run)
    share = np.array(run.summary["class_counts"]) / sum(run.summary["class_counts"])
    features, labels = _features(run, "test")
    logits = features @ weight.T + bias
    for adjustment, expected in (
        ("additive", logits - 1.5 * np.log(share)),
        ("multiplicative", logits * share**-1.5),
    ):
        made = stage2("logit-adjustment", taus=[1.5], adjustment=adjustment)
        found = made.summary["last"]["test"]["balanced_accuracy"]
        assert found == pytest.approx(_balanced(expected.argmax(1), labels), abs=1e-12)
        new_weight, new_bias = _classifier(made)
        np.testing.assert_allclose(
            features @ new_weight.T + new_bias, expected, rtol=1e-4, atol=1e-4
        )
    assert _balanced(logits.argmax(1), labels) != found


def test_ncm_is_the_papers_cl2n(run: Run, stage2: Stage2):
    features, labels = _features(run, "train")
    centre = features.mean(0)

    def directions(z: np.ndarray) -> np.ndarray:
        return (z - centre) / np.linalg.norm(z - centre, axis=1, keepdims=True)

    means = np.stack([directions(features)[labels == k].mean(0) for k in range(10)])
    images, truth = _features(run, "test")
    nearest = ((directions(images)[:, None] - means) ** 2).sum(-1).argmin(1)
    made = stage2("ncm")
    found = made.summary["last"]["test"]["balanced_accuracy"]
    assert found == pytest.approx(_balanced(nearest, truth), abs=1e-12)
    assert evaluate_run(made, "test", "last")["equals_summary"] is True  # the folder is a run


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_ncm_is_the_nearest_mean_of_numpy(run: Run, stage2: Stage2, distance: str):
    features, labels = _features(run, "train")
    means = np.stack([features[labels == k].mean(0) for k in range(10)])
    images, truth = _features(run, "test")
    if distance == "euclidean":
        distances = ((images[:, None] - means) ** 2).sum(-1)
    else:
        lengths = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        distances = -images @ means.T / lengths
    result = stage2("ncm", distance=distance)
    found = result.summary["last"]["test"]["balanced_accuracy"]
    assert found == pytest.approx(_balanced(distances.argmin(1), truth), abs=1e-12)


def _sgd(
    features: np.ndarray,
    labels: np.ndarray,
    parameters: list[np.ndarray],
    logits_of: Callable[[np.ndarray], np.ndarray],
    gradients_of: Callable[[np.ndarray, np.ndarray], list[np.ndarray]],
    seed: int,
) -> None:
    """Two epochs of SGD as the docstrings say, by hand, on cached features."""
    batches = ClassBalancedBatches(torch.from_numpy(labels), 64, derive_seed(seed, SAMPLER))
    velocity = [np.zeros_like(p) for p in parameters]
    for epoch in (1, 2):
        for batch in batches.batches(epoch):
            chosen = batch.positions.numpy()
            logits = logits_of(features[chosen])
            softmax = np.exp(logits - logits.max(1, keepdims=True))
            softmax /= softmax.sum(1, keepdims=True)
            softmax[np.arange(64), labels[chosen]] -= 1
            rate = 0.2 * 64 / 512 * {1: 1.0, 2: 0.5}[epoch]  # a cosine over the epochs
            gradients = gradients_of(features[chosen], softmax / 64)
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v[:] = 0.9 * v + g + 5e-4 * p
                p -= rate * v


def test_lws_is_sgd_on_the_scales(run: Run, stage2: Stage2):
    features, labels = _features(run, "train")
    weight, bias = _classifier(run)
    scales = np.ones(10)
    _sgd(
        features,
        labels,
        [scales],
        lambda z: (z @ weight.T + bias) * scales,
        lambda z, g: [(g * (z @ weight.T + bias)).sum(0)],
        seed=3,
    )
    result = stage2("lws", epochs=2, cache_features=True)
    found = _classifier(result)
    assert np.abs(scales - 1).max() > 0.01
    np.testing.assert_allclose(found[0], weight * scales[:, None], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], bias * scales, rtol=2e-4, atol=1e-6)


def test_los_goes_on_from_the_run_towards_smoothed_labels(run: Run, stage2: Stage2):
    """With one batch of everything a step is known: it is the gradient of the smoothed loss."""
    features, labels = _features(run, "train")
    weight, bias = _classifier(run)
    logits = features @ weight.T + bias
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # With 10 classes and 0.98 the label's target is 0.02 + 0.098, the others' 0.098.
    error = (softmax - 0.098 - 0.02 * np.eye(10)[labels]) / len(labels)
    options = {"epochs": 1, "batch_size": len(labels), "cache_features": True}
    found = _classifier(stage2("los", lr=0.5, **options))
    np.testing.assert_allclose(found[0], weight - 0.5 * error.T @ features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], bias - 0.5 * error.sum(0), rtol=1e-4, atol=1e-6)
    made = stage2("los", epochs=1, cache_features=True)
    options = made.summary["stage2"]["options"]
    assert (options["lr"], options["weight_decay"]) == (5e-4, 0.0)  # batches of 64


def test_crt_is_sgd_from_new_weights(run: Run, stage2: Stage2):
    features, labels = _features(run, "train")
    # A rate of almost zero leaves the new weights as they were drawn.
    start = _classifier(stage2("crt", epochs=1, lr=1e-12, cache_features=True))
    weight, bias = (part.copy() for part in start)
    assert np.abs(weight - _classifier(run)[0]).max() > 0.1
    _sgd(
        features,
        labels,
        [weight, bias],
        lambda z: z @ weight.T + bias,
        lambda z, g: [g.T @ z, g.sum(0)],
        seed=3,
    )
    found = _classifier(stage2("crt", epochs=2, cache_features=True))
    assert np.abs(weight - start[0]).max() > 0.02  # ten steps
    np.testing.assert_allclose(found[0], weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1], bias, rtol=1e-3, atol=1e-5)
