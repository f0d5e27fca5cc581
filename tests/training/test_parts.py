"""Losses, samplers and long-tailed splits without the trainer: imports, arguments, examples."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config.loss import LossOptions
from training.config.sampler import SamplerOptions
from training.data.longtail import Cut, exponential_counts, long_tailed_split, published_split
from training.errors import ConfigError
from training.losses import LDAM, ClassBalanced, Focal, LogitAdjusted
from training.samplers import B3RSStream, InstanceSampler, ScheduledSampler

REPOSITORY = Path(__file__).parents[2]
PARTS = ("training.losses", "training.samplers", "training.data.longtail")
COUNTS = torch.tensor([8, 2])
LABELS = torch.tensor([0] * 8 + [1] * 2)

# Everything but torch and numpy is refused from where these are loaded on, and so is fastwhiten.
ALONE = """
import importlib, sys
from importlib.machinery import ModuleSpec
import numpy, torch

def packages():
    return {name.partition(".")[0] for name in sys.modules}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (%s):
            return ModuleSpec(name, self)  # torch asks whether there is one

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not here")

sys.meta_path.insert(0, Refuse())
before = packages()
for part in %s:
    importlib.import_module(part)
print(*packages() - before - sys.stdlib_module_names)
exec(sys.stdin.read())
print(loss.item())
"""
REFUSED = (
    "fastwhiten jsonargparse kornia matplotlib PIL rich safetensors scipy sklearn tensorboard yaml"
).split()


def test_the_parts_and_the_readme_s_loop_need_torch_and_numpy_alone():
    section = (REPOSITORY / "training" / "README.md").read_text().partition("your own loop\n")[2]
    (loop,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", ALONE % (", ".join(map(repr, REFUSED)), PARTS)],
        input=loop,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported, loss = done.stdout.splitlines()
    assert imported == "training"
    assert 0 < float(loss) < 2.3  # log 10 is no better than chance


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_has_an_example(part: str):
    module = importlib.import_module(part)
    public = {name: getattr(module, name) for name in module.__all__}
    named = {n: v for n, v in public.items() if inspect.isfunction(v) or inspect.isclass(v)}
    protocols = {n for n, value in named.items() if getattr(value, "_is_protocol", False)}
    assert len(named) > 5
    assert [n for n in named.keys() - protocols if ">>>" not in (named[n].__doc__ or "")] == []


def test_defaults_are_those_of_the_command_line():
    compared = 0
    for made, options, others in (
        (B3RSStream, SamplerOptions(), ()),
        (ScheduledSampler, SamplerOptions(), ()),
        (LogitAdjusted, LossOptions(), ("prior",)),  # numbers here, a name there
        (Focal, LossOptions(), ()),
        (ClassBalanced, LossOptions(), ()),
        (LDAM, LossOptions(), ("beta", "drw_epoch")),  # LDAM here, LDAM-DRW there
    ):
        for name, parameter in inspect.signature(made).parameters.items():
            if hasattr(options, name) and name not in others:
                assert parameter.default == getattr(options, name), name
                compared += 1
    assert compared == 16


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LogitAdjusted(COUNTS, tau=-1.0), "tau: .* >= 0, got -1.0"),
        (lambda: LogitAdjusted(COUNTS, 1.0, torch.tensor([1, 0])), r"balanced_prior: .* \[1\]"),
        (lambda: Focal(gamma=float("nan")), "gamma: .* >= 0, got nan"),
        (lambda: ClassBalanced(COUNTS, beta=1.0), r"beta: .* in \[0, 1\), got 1.0"),
        (lambda: LDAM(COUNTS, max_m=0.0), "max_m: .* > 0, got 0.0"),
        (lambda: LDAM(COUNTS, s=0.0), "s: .* > 0, got 0.0"),
        (lambda: LDAM(COUNTS, drw_epoch=0), "drw_epoch: .* >= 1, got 0"),
        (lambda: InstanceSampler(10, 1), "batch_size: .* >= 2, got 1"),
        (lambda: _b3rs(q=2.0), r"q: .* in \[0, 1\], got 2.0"),
        (lambda: _b3rs(reading="rows"), "reading: .* out of quotas, classes-images, got 'rows'"),
        (lambda: _b3rs(block_weights=[1.0]), "block_weights: .* 2 numbers"),
        (lambda: _b3rs(bet_period=0), "bet_period: .* >= 1, got 0"),
        (lambda: _b3rs(bet_start_epoch=0), "bet_start_epoch: .* >= 1, got 0"),
        (lambda: _b3rs(bet_schedule="often"), "bet_schedule: .* out of periodic, random"),
        (lambda: Cut(2, "linear"), "imbalance_type: .* out of exp, step, natural, got 'linear'"),
        (lambda: exponential_counts(8, 2, 0.5), "imbalance_factor: .* >= 1, got 0.5"),
        (lambda: _split(published_split, validation_from="test"), "validation_from: .* held-out"),
        (lambda: _split(published_split, validation_per_class=-1), "validation_per_class: .* >= 0"),
        (lambda: _split(long_tailed_split, test_per_class=0), "test_per_class: .* >= 1, got 0"),
    ],
)
def test_an_argument_out_of_range_is_named(make, text: str):
    with pytest.raises(ConfigError, match=text):
        make()


def _b3rs(**options) -> ScheduledSampler:
    bet = {name: options.pop(name) for name in list(options) if name.startswith("bet_")}
    return ScheduledSampler(LABELS, 4, partial(B3RSStream, **{"blocks": 2, **options}), **bet)


def _split(split, **options):
    if split is published_split:
        options = {"validation_from": "held-out", **options}
    return split(np.arange(20) % 2, cut=Cut(2), seed=0, **{"validation_per_class": 1, **options})


def test_the_plan_of_a_sampler_without_the_recipe_names_its_arguments():
    _b3rs()
    parameters = _b3rs(bet_period=3).parameters()
    assert (parameters["bet_period"], parameters["batch_size"], parameters["batches"]) == (3, 4, 2)
