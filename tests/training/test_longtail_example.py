"""examples/longtail.py: its batches, its window of a shifted image, and a few steps of training."""

from __future__ import annotations

import gzip
import math
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import longtail
from tests.helpers.long_tail import cifar100_lt_counts, labels_of
from training.samplers.apportion import largest_remainder

SCRIPT = Path(longtail.__file__)


def test_the_quotas_are_those_of_the_recipe():
    counts = np.array(cifar100_lt_counts(), dtype=float).reshape(5, 20).sum(1)
    assert longtail.quotas(counts, 128, 0.5).tolist() == [53, 33, 21, 13, 8]
    random = np.random.default_rng(0)
    for rows in (8, 13, 128):
        for q in (0.0, 0.3, 1.0):
            images = random.integers(1, 1000, 5).astype(float)
            expected = largest_remainder(rows, images**q, minimum=1)
            found = longtail.quotas(images, rows, q)
            assert found.sum() == rows and found.min() >= 1
            if (rows * images**q / (images**q).sum() >= 1).all():
                assert found.tolist() == expected.tolist()


def test_every_period_th_batch_has_the_quotas():
    labels = labels_of([60, 31, 17, 9, 5, 2]).numpy()  # 124 images
    made = list(islice(longtail.batches(labels, 20, 3, blocks=3, q=0.0, seed=0), 24))
    kinds = [np.bincount(labels[batch] // 2, minlength=3).tolist() for batch in made]
    assert all(kinds[number] == [7, 7, 6] for number in range(2, 24, 3))
    # The others go through all images in passes: 16 batches are 2 passes and 72 images.
    ordinary = [p for number, batch in enumerate(made) if number % 3 != 2 for p in batch]
    assert sorted(ordinary[:124]) == sorted(ordinary[124:248]) == list(range(124))
    none = list(islice(longtail.batches(labels, 20, 0, blocks=3, q=0.0, seed=0), 6))
    assert len(set(np.concatenate(none).tolist())) == 120


def test_a_shifted_image_is_a_window_of_the_padded_one():
    pixels = torch.randn(200, 1, 5, 4)
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    found = set()
    for image, window in zip(padded, longtail.augment(pixels, 2, flip=False), strict=True):
        places = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(image[:, i : i + 5, j : j + 4], window)
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) == 25
    mirrored = longtail.augment(pixels, 0, flip=True)
    same = sum(torch.equal(a, b) for a, b in zip(mirrored, pixels, strict=True))
    flipped = sum(torch.equal(a.flip(2), b) for a, b in zip(mirrored, pixels, strict=True))
    assert same + flipped == 200 and 60 < same < 140


@pytest.mark.parametrize(
    "arguments", [(), ("--whitening", "none", "--tau", "0", "--bet-period", "0")]
)
def test_it_learns_from_any_folder(arguments: tuple[str, ...], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--epochs", "8", "--warmup-epochs", "1", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, accuracies, seconds = done.stdout.splitlines()
    values = dict(zip(accuracies.split()[4::2], map(float, accuracies.split()[5::2]), strict=True))
    assert list(values) == ["many", "medium", "few", "balanced", "all"]
    assert values["many"] > 50 and values["all"] == values["balanced"] > 20  # chance is 10
    assert seconds.endswith(" s")


def test_it_reads_idx_files(tmp_path: Path):
    random = np.random.default_rng(0)
    for part, size in (("train", 600), ("t10k", 50)):
        labels = np.arange(size) % 10
        pixels = (random.integers(0, 60, (size, 6, 6)) + 20 * labels[:, None, None]).astype("uint8")
        for name, header, values in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            content = bytes(header) + values.astype(np.uint8).tobytes()
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    train, test = longtail.load_idx(tmp_path, 10)
    assert train.labels.bincount().tolist() == [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert (test.pixels.shape, test.labels[:3].tolist()) == ((50, 1, 6, 6), [0, 1, 2])
    assert test.pixels[3].min() >= 60 > test.pixels[0].max() and train.pixels[0].max() < 60
    arguments = "--imbalance-factor 10 --epochs 1 --warmup-epochs 0 --whitening none"
    options = longtail.parse(["--data", str(tmp_path), *arguments.split()])
    accuracies = longtail.train(options, report=False)
    kinds = {name: math.isnan(accuracy) for name, accuracy in accuracies.items()}
    assert kinds == {"many": True, "medium": False, "few": False, "balanced": False, "all": False}


@pytest.mark.parametrize(
    "wrong",
    ["--imbalance-factor=0.5", "--imbalance-factor=200", "--batch-size=400", "--blocks=11"],
)
def test_what_does_not_fit_the_data_is_an_error(wrong: str):
    name = wrong.partition("=")[0]
    with pytest.raises(SystemExit, match=f"expected .*{name} "):
        longtail.train(longtail.parse([wrong]))
