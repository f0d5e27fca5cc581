"""From a run to what the methods work with: features, batches, a new classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache

import torch
from torch import Tensor

from training.config import Stage2Config
from training.data import LongTailedDataset, build_feed
from training.data.feed import TrainFeed
from training.evaluation.evaluate import collect_features
from training.models import WhitenedClassifier, build_model
from training.reproducibility import derive_seed
from training.runs.finished import Run
from training.samplers import InstanceSampler
from training.samplers.base import Batch
from training.stage2.batches import ClassBalancedBatches
from training.stage2.methods import Material
from training.stage2.split import ChoiceData
from training.stage2.train_classifier import FeatureBatches

# Mixed into the seed; they keep clear of the positions that `resolve_seeds` mixes in.
SAMPLER, AUGMENTATION, INITIALISATION, HOLDOUT = 1001, 1002, 1003, 1004


@contextmanager
def build_material(
    config: Stage2Config,
    run: Run,
    dataset: LongTailedDataset,
    data: ChoiceData,
    model: WhitenedClassifier,
    seed: int,
) -> Iterator[Material]:
    """Put together what a method works with, for the time of a with statement.

    Args:
        config: With nothing null that it needs.
        run: The finished run.
        dataset: On the device.
        data: What to learn from.
        model: The run's model, on the device, in evaluation mode.
        seed: Seed of the new weights, the batches and the augmentation.
    """
    device = dataset.device
    positions = data.positions.to(device)  # [N']
    labels = dataset.train.labels[positions]  # [N']

    @cache
    def features() -> Tensor:
        return collect_features(model, dataset, dataset.train)[1].to(device)[positions]

    fresh = build_model(
        run.config,
        dataset.channels,
        dataset.num_classes,
        derive_seed(seed, INITIALISATION),
    ).classifier.to(device)
    batches = build_batches(config, labels.cpu(), derive_seed(seed, SAMPLER))
    with closing(build_feed(dataset, derive_seed(seed, AUGMENTATION))) as feed:
        if config.cache_features:
            pairs = _cached(batches, features, labels)
        else:
            pairs = _augmented(batches, feed, data, model, config.backbone == "train")
        yield Material(
            model=model,
            fresh=fresh,
            features=features,
            labels=labels,
            batches=lambda epoch: FeatureBatches(len(batches), pairs(epoch)),
            class_counts=dataset.class_counts,
            num_classes=dataset.num_classes,
        )


def build_batches(
    config: Stage2Config, labels: Tensor, seed: int
) -> ClassBalancedBatches | InstanceSampler:
    """Return the batches of the images with these labels [N]: class-balanced, but not for LOS."""
    size = config.batch_size or 0
    if config.method == "los":
        return InstanceSampler(len(labels), size, seed, drop_last=False)
    return ClassBalancedBatches(labels, size, seed, config.images_per_class)


Pairs = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def _cached(
    batches: ClassBalancedBatches | InstanceSampler,
    features: Callable[[], Tensor],
    labels: Tensor,
) -> Pairs:
    """Features computed once, without augmentation."""

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches.batches(epoch):
            chosen = batch.positions.to(labels.device)  # [B]
            yield features()[chosen], labels[chosen]

    return pairs


def _augmented(
    batches: ClassBalancedBatches | InstanceSampler,
    feed: TrainFeed,
    data: ChoiceData,
    model: WhitenedClassifier,
    batch_statistics: bool,
) -> Pairs:
    """Features of freshly augmented images, by the run's own feed.

    With batch statistics the model is in training mode while it computes them, and not in between.
    """

    def pairs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        plan = (
            Batch(data.positions[batch.positions], batch.index, batch.kind)
            for batch in batches.batches(epoch)
        )
        for examples in feed.examples(plan, epoch):
            model.train(batch_statistics)
            with torch.no_grad():
                features = model.features(examples.images)[1]  # [B, D]
            model.eval()
            yield features, examples.labels

    return pairs
