"""Looking at finished runs: evaluate one, compare many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from training.config.arguments import POSITIONAL
from training.config.checks import check

SplitName = Literal["validation", "test", "train"]


@dataclass
class EvalConfig:
    """Evaluate a checkpoint of a run.

    Attributes:
        run: The run folder.
        split: Which images; the training images are taken without augmentation.
        checkpoint: Which checkpoint of the run; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        device: auto, cpu, cuda or any device name of torch; null is the run's.
        output: File for the result as JSON; null writes none.
        verify: Fail (exit status 1) if the result is not, to the bit, what summary.json says.
    """

    run: str = field(metadata=POSITIONAL)
    split: SplitName = "test"
    checkpoint: Literal["last", "best"] = "last"
    device: str | None = None
    output: str | None = None
    verify: bool = False


@dataclass
class CompareConfig:
    """Compare runs over their seeds.

    Runs with the same values of the grouped options are one line of the table; they may differ in
    their seed alone, and lines may differ in the grouped options alone.

    Attributes:
        runs: Run folders.
        root: A folder; every finished run below it is taken as well.
        group_by: Names of options (of `train`, or stage2); null is dataset, imbalance_factor,
            whitening, loss, sampler, bet_period and stage2, as far as the runs have them. An option
            inside a section that belongs to a grouped one, as stage2.tau does to stage2, may differ
            between lines as well.
        ignore: Names of options that may differ without a word.
        baseline: Values of grouped options, for instance {whitening: none}. Every line is compared,
            seed by seed, with the line that has these values and otherwise its own.
        split: Which results.
        confidence: Confidence of the interval of the mean difference; in (0, 1).
        output: Folder for the tables as markdown and CSV; null writes none.
    """

    runs: list[str] = field(default_factory=list, metadata=POSITIONAL)
    root: str | None = None
    group_by: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    baseline: dict[str, Any] | None = None
    split: Literal["validation", "test"] = "test"
    confidence: float = 0.95
    output: str | None = None


def check_compare(config: CompareConfig) -> None:
    """Check the ranges."""
    check("confidence", config.confidence, 0 < config.confidence < 1, "in (0, 1)")
    check(
        "runs",
        config.runs,
        bool(config.runs) or config.root is not None,
        "with at least one run folder, or a --root that holds some",
    )
