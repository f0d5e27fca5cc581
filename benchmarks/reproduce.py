"""Does the recipe train as a plain loop does? `examples/longtail.py` beside `python -m training`.

    python -m benchmarks.reproduce [--data digits-lt] [--method ours] [--seeds 10] [--epochs 100]

The example shares nothing with the recipe but the whitening layer: files, long-tailed split,
augmentation, batches, network, loss, optimiser, schedule and evaluation are written anew. Both get
the preset's options, without validation images, and for every seed the same training and test
images (those of digits-lt differ from seed to seed); their random streams differ. Printed are
accuracies on the test images after the last epoch with 95 % intervals (Student's t), and the mean
of the differences seed by seed with its own. Exit status 1: the interval of the difference over all
images leaves out 0, as it does for equal loops in one of twenty runs. Few seeds find large faults
only: look at the interval's width.
"""

from __future__ import annotations

import argparse
import io
import tempfile

import torch
from rich.console import Console

from examples import longtail
from training.cli import parse
from training.commands.train import run_train
from training.config import TrainConfig
from training.config.optim import warmup_epochs
from training.evaluation.spread import Spread, paired_differences, spread

FOLDER = "/usr/share/datasets/fashion-mnist"
# The example's name of an accuracy, and the recipe's.
ACCURACIES = {"all": "accuracy", "many": "many", "medium": "medium", "few": "few"}


def recipe_config(
    data: str, method: str, seed: int, epochs: int | None, folder: str, root: str
) -> TrainConfig:
    """The preset's run, on as many threads as this process has; null are the preset's epochs."""
    options = {
        "seed": seed,
        "data.validation_per_class": 0,
        "evaluate_every": 1000,
        "evaluate_test": "false",
        "output.root": root,
        "output.plots": "false",
        "output.loggers": "[]",
        "threads": torch.get_num_threads(),
        "device": "cpu",
        **({"seeds.split": seed} if data == "digits-lt" else {"data.root": folder}),
        **({} if epochs is None else {"optim.epochs": epochs}),
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    config: TrainConfig = parse(["train", "--config", f"{data}/{method}", *arguments])[1]
    return config


def example_options(config: TrainConfig) -> argparse.Namespace:
    """The same task in the example's words."""
    options = {
        "data": config.data.root or "digits",
        "imbalance-factor": config.imbalance_factor,
        "whitening": config.whitening,
        "tau": config.loss_options.tau if config.loss == "logit-adjusted" else 0,
        "bet-period": config.bet_period or int(config.sampler == "b3rs"),
        "blocks": config.sampler_options.blocks,
        "q": config.sampler_options.q,
        "epochs": config.optim.epochs,
        "warmup-epochs": warmup_epochs(config.optim),
        "batch-size": config.data.batch_size,
        "lr": config.optim.lr,
        "weight-decay": config.optim.weight_decay,
        "seed": config.seed,
    }
    return longtail.parse([f"--{name}={value}" for name, value in options.items()])


def recipe(config: TrainConfig) -> dict[str, float]:
    """Train as ``python -m training train`` does; return accuracies, named as in the example."""
    test = run_train(config, Console(file=io.StringIO()))["last"]["test"]
    return {name: test[key] for name, key in ACCURACIES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run both with every seed; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits-lt", "fashion-mnist-lt"), default="digits-lt")
    parser.add_argument("--method", choices=("ours", "bet", "logit-adjusted", "ce"), default="ours")
    parser.add_argument("--seeds", type=int, default=10, help="how many; at least 2")
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    parser.add_argument("--root", default=FOLDER, help="folder of the gzipped files")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error("expected --seeds of at least 2: an interval needs differences")
    recipes, examples = [], []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as root:
            config = recipe_config(given.data, given.method, seed, given.epochs, given.root, root)
            recipes.append(recipe(config))
        examples.append(longtail.train(example_options(config), report=False))
        found = (f"{100 * run['all']:.2f}" for run in (recipes[-1], examples[-1]))
        print("seed {}: recipe {}, example {}".format(seed, *found), flush=True)
    differences = {}
    for name in ACCURACIES:
        ours, theirs = (
            {seed: runs[seed][name] for seed in range(given.seeds)} for runs in (recipes, examples)
        )
        differences[name] = spread(paired_differences(ours, theirs))
        if differences[name].n:
            shown = [_shown(spread(list(runs.values()))) for runs in (ours, theirs)]
            print("{:6} recipe {}, example {}, ".format(name, *shown), end="")
            print(f"difference {_shown(differences[name], '+')} (95 %, n = {differences[name].n})")
    return int(abs(differences["all"].mean) > differences["all"].half_width(0.95))


def _shown(found: Spread, sign: str = "") -> str:
    return f"{100 * found.mean:{sign}.2f} ± {100 * found.half_width(0.95):.2f} %"


if __name__ == "__main__":
    raise SystemExit(main())
