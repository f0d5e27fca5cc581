"""Files decoded in worker processes: the same images with any workers, ranks and starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import DataConfig
from training.data import build_dataset, build_feed, evaluation_batches
from training.data.decode import color_jitter, evaluation_image, random_crop_box, training_image
from training.data.file_feed import FileFeed
from training.errors import ConfigError
from training.samplers import InstanceSampler

_LOADING = DataConfig(image_size=12, resize=14, color_jitter=0.4)


_BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def _others() -> None:
    """What other tests have started in this process, such as a pool, is not counted."""
    _BEFORE.clear()
    _BEFORE.update(child.pid for child in multiprocessing.active_children())


def workers_of_this_test() -> list[multiprocessing.Process]:
    return [c for c in multiprocessing.active_children() if c.pid not in _BEFORE]


@pytest.fixture
def files(image_root, data_config):
    def build(workers: int = 0, **data):
        options = {"image_size": 12, "resize": 14, "color_jitter": 0.3, **data}
        config = data_config("image-folder", image_root, 2, workers=workers, **options)
        config.data.validation_per_class = 2
        return build_dataset(config, 0)

    return build


def run(dataset, epoch=1, start=0, rank=0, world_size=1, feed=None):
    sampler = InstanceSampler(len(dataset.train), 7, seed=0, drop_last=False)
    if feed is None:
        with closing(build_feed(dataset, 5, rank, world_size)) as feed:
            return run(dataset, epoch, start, feed=feed)
    return list(feed.examples(sampler.batches(epoch, start), epoch))


def test_workers_change_nothing(files):
    dataset = files(0)
    expected = run(dataset)
    assert isinstance(build_feed(dataset, 5), FileFeed)
    got = run(files(2))
    assert len(expected) == len(got) == len(dataset.train) // 7 + bool(len(dataset.train) % 7)
    for left, right in zip(expected, got, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, dataset.train.labels[right.batch.positions])
        assert left.images.shape[1:] == (3, 12, 12)
        assert left.images.dtype == torch.float32


@pytest.mark.parametrize("augment", ["crop-flip", "randaugment"])
def test_ranks_together_have_what_one_process_has(files, augment):
    dataset = files(0, augment=augment, cutout=3)
    whole = run(dataset)
    parts = [run(dataset, rank=rank, world_size=3) for rank in range(3)]
    for number, expected in enumerate(whole):
        images = torch.empty_like(expected.images)
        for rank in range(3):
            images[rank::3] = parts[rank][number].images
        assert torch.equal(images, expected.images)


def test_starts_in_the_middle_and_later_epochs_with_the_same_workers(files):
    dataset = files(1)
    with closing(build_feed(dataset, 5)) as feed:
        check_starts(dataset, feed)
    assert workers_of_this_test() == []


def check_starts(dataset, feed):
    first = run(dataset, 1, feed=feed)
    second = run(dataset, 2, feed=feed)
    assert not torch.equal(first[0].images, second[0].images)
    rest = run(dataset, 1, start=2, feed=feed)
    assert [e.batch.index for e in rest] == [e.batch.index for e in first[2:]]
    for left, right in zip(first[2:], rest, strict=True):
        assert torch.equal(left.images, right.images)
    # An epoch that is left in the middle does not leak into the next one.
    sampler = InstanceSampler(len(dataset.train), 7, seed=0, drop_last=False)
    next(iter(feed.examples(sampler.batches(1), 1)))
    again = run(dataset, 2, feed=feed)
    for left, right in zip(second, again, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def test_no_augmentation_is_the_evaluation_crop(files):
    dataset = files(0, augment="none", color_jitter=0.0)
    for examples in run(dataset):
        for image, position in zip(examples.images, examples.batch.positions, strict=True):
            loading = dataset.options
            expected = evaluation_image(Image.open(dataset.train.paths[position]), loading)
            assert torch.equal(image, dataset.normalise(expected[None])[0])


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (1, 2)])
def test_evaluation_batches(files, workers, world_size):
    dataset = files(workers)
    seen = []
    for rank in range(world_size):
        share = list(range(rank, len(dataset.test), world_size))
        batches = list(evaluation_batches(dataset, dataset.test, 4, rank, world_size))
        labels = torch.cat([labels for _, labels in batches])
        assert torch.equal(labels, dataset.test.labels[share])
        images = torch.cat([images for images, _ in batches])
        first = evaluation_image(Image.open(dataset.test.paths[share[0]]), dataset.options)
        assert torch.equal(images[0], dataset.normalise(first[None])[0])
        seen.extend(share)
    assert sorted(seen) == list(range(len(dataset.test)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_is_named(files, workers):
    dataset = files(workers)
    path = dataset.train.paths[3]
    with open(path, "wb") as file:
        file.write(b"\xff\xd8broken")
    with pytest.raises(ConfigError, match="can be decoded, got a truncated or corrupt") as error:
        run(dataset)
    # The message itself, not a worker's traceback around it.
    assert str(error.value).startswith(path)
    assert workers_of_this_test() == []  # though the traceback holds the loader


def test_an_evaluation_that_is_left_ends_its_workers(files):
    dataset = files(2)
    with closing(evaluation_batches(dataset, dataset.test, 4)) as batches:
        next(batches)
        assert len(workers_of_this_test()) == 2
    assert workers_of_this_test() == []


def test_signals_to_the_process_group_do_not_stop_the_workers(files, tmp_path):
    """Ctrl-C and SIGTERM: the training process saves, its workers go on until it is done."""
    dataset = files(1)
    expected = run(files(0))
    marker = tmp_path / "marker"
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, lambda *_: marker.touch()) for kind in kinds]
    feed = build_feed(dataset, 5)
    try:
        sampler = InstanceSampler(len(dataset.train), 7, seed=0, drop_last=False)
        got = []
        for examples in feed.examples(sampler.batches(1), 1):
            got.append(examples)
            if len(got) == 1:
                (worker,) = workers_of_this_test()
                for kind in kinds:
                    os.kill(worker.pid, kind)
    finally:
        feed.close()
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
    assert not marker.exists()  # a handler of the training process is not the workers'
    for left, right in zip(expected, got, strict=True):
        assert torch.equal(left.images, right.images)


def test_crops_cover_the_image_and_keep_their_limits():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(60, 40, rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() == 0
    assert boxes[:, 2].max() == 60
    assert boxes[:, 3].max() == 40
    ratio, area = width / height, width * height / 2400
    assert 0.6 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.6
    assert 0.06 < area.min() < 0.1
    assert area.max() > 0.8
    # An image so long that no drawn box fits: the largest centred box of an allowed ratio.
    assert random_crop_box(1000, 6, rng) == (496, 0, 504, 6)


def test_resize_and_centre_crop():
    columns = np.repeat(np.arange(28, dtype=np.uint8)[None], 14, 0)  # [14, 28], already small
    image = Image.fromarray(np.stack([columns] * 3, -1))
    result = evaluation_image(image, _LOADING)
    assert result.shape == (3, 12, 12)
    assert result[0, 0].tolist() == list(range(8, 20))


def test_training_crop_flips_half_the_time():
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None] * 6, 40, 0)
    image = Image.fromarray(np.stack([ramp] * 3, -1))
    loading = DataConfig(image_size=12, resize=14, color_jitter=0.0)
    flips = []
    for seed in range(400):
        row = training_image(image, loading, np.random.default_rng(seed), True)[0, 5].int()
        flips.append(bool(row[0] > row[-1]))
    assert 0.4 < np.mean(flips) < 0.6


def test_colour_jitter_stays_in_its_range():
    image = Image.new("RGB", (4, 4), (100, 100, 100))  # grey: contrast and colour change nothing
    values = [
        np.array(color_jitter(image, 0.4, np.random.default_rng(seed))).mean()
        for seed in range(300)
    ]
    assert 59 <= min(values) < 64
    assert 136 < max(values) <= 141
