"""Looking at finished runs: evaluate one, compare many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from training.config.checks import POSITIONAL, check, check_unused
from training.config.data import DataConfig
from training.config.datasets import DatasetName
from training.config.runtime import SeedConfig
from training.config.train import TrainConfig

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


CheckpointName = Literal["last", "best"]


@dataclass
class DiagnoseConfig:
    """Diagnostics of the features, the batches and the classifier of a run's checkpoint.

    Attributes:
        run: The run folder.
        checkpoint: Which checkpoint of the run; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        split: Whose features; those of the training images are taken without augmentation.
        device: auto, cpu, cuda or any device name of torch.
        hessian_rows: Images that the condition number of the classifier's Hessian is computed from,
            evenly spread over the split; >= 2. Its cost grows with them.
        ood: Other data sets, for instance "[glyphs-lt]", or one without the brackets: how well are
            their test images told from the split's? They are resized to its size and made grey, or
            of three equal channels, like it. Choose one that shares no class with the run's.
        ood_root: Folders of their files, where these are not in the data set's own place.
    """

    run: str = field(metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    split: Literal["train", "validation", "test"] = "test"
    device: str = "auto"
    hessian_rows: int = 4096
    ood: list[str] | str = field(default_factory=list)
    ood_root: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make one data set a list."""
        self.ood = [self.ood] if isinstance(self.ood, str) else self.ood


def check_diagnose(config: DiagnoseConfig) -> None:
    """Check the ranges."""
    check("hessian_rows", config.hessian_rows, config.hessian_rows >= 2, ">= 2")


@dataclass
class PlotConfig:
    """The pictures of a run (PNG and SVG) and its report in one HTML file.

    Attributes:
        run: The run folder.
        checkpoint: Whose features and predictions are drawn; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        split: On which images.
        device: auto, cpu, cuda or any device name of torch.
    """

    run: str = field(metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    split: Literal["validation", "test"] = "test"
    device: str = "auto"


@dataclass
class PredictConfig:
    """The classes of images, by a run or an exported model, which brings their preparation along.

    Attributes:
        run: The run folder, or a file that `export` has written; the data set is not needed.
        images: Image files, and folders whose images are taken, those of folders inside too. Their
            background is to be that of the training images: digits-lt's is black.
        checkpoint: Which checkpoint of a run; a file has one.
        top: How many classes to print of each image, the likeliest first; >= 1.
        output: File for all probabilities as CSV, a line per image; null writes none.
    """

    run: str = field(metadata=POSITIONAL)
    images: list[str] = field(default_factory=list, metadata=POSITIONAL)
    checkpoint: CheckpointName = "last"
    top: int = 1
    output: str | None = None


def check_predict(config: PredictConfig) -> None:
    """Check the ranges."""
    check("top", config.top, config.top >= 1, ">= 1")
    check("images", config.images, bool(config.images), "with at least one image file or folder")


@dataclass
class ExportConfig:
    """The model of a run's checkpoint, in evaluation mode, for use without this package.

    Attributes:
        run: The run folder.
        format: safetensors (weights, loaded by `training.export.load_safetensors`), torch-export
            (a .pt2 program) or onnx; the last two take batches of any size.
        checkpoint: Which checkpoint of the run; its raw weights, never their
            average (optim.ema_decay), as for the figures of "last" and "best".
        fold: Fold the whitening layer into the classifier's weight and bias. The logits are the
            same up to rounding.
        output: The file to write; null is export/<checkpoint>[-folded].<ending> in the run folder.
    """

    run: str = field(metadata=POSITIONAL)
    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    checkpoint: CheckpointName = "last"
    fold: bool = False
    output: str | None = None


@dataclass
class DataCommandConfig:
    """Look at a data set without training on it.

    Attributes:
        action: stats prints the images per class and shot group and draws them; verify reads every
            file, compares checksums, and lists what is wrong (exit status 2); copy writes a folder
            with the images of the three splits alone, which image-folder takes as it is.
        dataset: Which data, as for train.
        imbalance_factor: As for train.
        seed: As for train.
        seeds: As for train; only ``split`` matters.
        data: As for train.
        picture: File of the picture, .png, .svg or .pdf; null is
            runs/class-counts-<dataset>.png. (stats)
        output: The new folder. (copy)
    """

    action: Literal["stats", "verify", "copy"] = field(metadata=POSITIONAL)
    dataset: DatasetName = "digits-lt"
    imbalance_factor: float | None = None
    seed: int = 0
    seeds: SeedConfig = field(default_factory=SeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    picture: str | None = None
    output: str | None = None

    def as_train(self) -> TrainConfig:
        """Return the configuration of a run on this data."""
        return TrainConfig(
            dataset=self.dataset,
            imbalance_factor=self.imbalance_factor,
            seed=self.seed,
            seeds=self.seeds,
            data=self.data,
        )


# The grids that have a name: axis -> values of the option of that name, or, where a step along the
# axis changes several options, label -> option -> value. The first value is the baseline.
GRIDS: dict[str, dict[str, Any]] = {
    "2x2": {
        "whitening": ["none", "fused"],
        "batches": {
            "plain": {"sampler": "instance", "bet_period": None},
            "b3rs+bet": {"sampler": "b3rs", "bet_period": 8},
        },
    },
}


@dataclass
class AblateConfig:
    """Train every combination of the axes, for every data set and seed, and print the table.

    Attributes:
        grid: A grid that has a name: 2x2 is {whitening none, fused} x {plain batches, B3RS + BET}.
            Not used if there are axes.
        axes: Your own grid: any option of `train` and the list of its values, as in
            --axes.whitening "[none,fused]" --axes.optim.lr "[0.1,0.2]". A step that changes several
            options gets a label: --axes.batches "{plain: {sampler: instance}, b3rs: {sampler: b3rs,
            bet_period: 8}}". The first value of every axis is the baseline.
        datasets: Data sets.
        dataset_options: Options of single data sets, which override those of train, for instance
            {digits-lt: {optim.epochs: 30}}.
        seeds: Seeds, at least one, all different.
        choose: Options that every arm chooses for itself, and their values, as in --choose
            "{optim.weight_decay: [2e-4, 5e-4, 1e-3, 5e-3]}". First every combination is trained
            with choose_seeds, in a grid of its own (name-choice); an arm takes the one of the
            highest mean balanced accuracy of the last epoch on validation images. Test images
            choose nothing. With data.class_order_seed as an axis, an arm chooses once for all
            orders.
        choose_seeds: Seeds of these runs, none of them in seeds.
        train: What all runs share; its dataset and seed are not used.
        root: Folder for the grid's folder.
        name: Name of the grid's folder; null is the grid's name, or "axes".
        jobs: Runs at a time; >= 1. Each has train.threads threads.
        one_process: The runs at a time share a process and take turns, step by step; on a GPU each
            has a stream. For small networks on one large GPU, with train.cuda_graph. Otherwise
            each run has a process of its own.
    """

    grid: str = "2x2"
    axes: dict[str, Any] | None = None
    datasets: list[str] = field(default_factory=lambda: ["digits-lt"])
    dataset_options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    choose: dict[str, Any] = field(default_factory=dict)
    choose_seeds: list[int] = field(default_factory=lambda: [1000])
    train: TrainConfig = field(default_factory=TrainConfig)
    root: str = "runs"
    name: str | None = None
    jobs: int = 1
    one_process: bool = False


def check_ablate(config: AblateConfig) -> None:
    """Check the ranges; the options of the axes are checked when the runs are planned."""
    check("jobs", config.jobs, config.jobs >= 1, ">= 1")
    check("grid", config.grid, config.grid in GRIDS, f"out of {', '.join(GRIDS)}")
    seeds = config.seeds
    unique = len(set(seeds)) == len(seeds)
    check("seeds", seeds, bool(seeds) and unique, "with at least one seed, each once")
    others = config.choose_seeds
    apart = bool(others) and not set(others) & set(seeds) and len(set(others)) == len(others)
    check("choose_seeds", others, apart, "with at least one seed, each once, and none of seeds")
    sets = config.datasets
    unique = len(set(sets)) == len(sets)
    check("datasets", sets, bool(sets) and unique, "with at least one data set, each once")
    unknown = sorted(set(config.dataset_options) - set(sets))
    check("dataset_options", unknown, not unknown, f"that names data sets of {', '.join(sets)}")
    check("name", config.name, config.name is None or "/" not in config.name, "without a slash")


@dataclass
class ReportConfig:
    """Write RESULTS.md anew from the summaries of runs, one small file each.

    Attributes:
        results: Folder of the summaries: results/<grid>/<run>.json, results/<grid>/grid.json with
            the name of the baseline arm and the order of the arms, results/claims.json, tables of
            differences over several grids, and results/verdicts.md, which is taken in as it is.
            RESULTS.md is written beside the folder.
        collect: Folder of an `ablate` grid: first summaries of its finished runs are written, with
            what `diagnose` has found and with stage2 runs made from them.
        baseline: Arm that the others are compared with, or a label of the grid's last axis: every
            arm is compared with the one that has it and is otherwise the same. null is what
            grid.json says, at first the grid's first arm. (with collect)
        pairs: More differences, of two arms each: --pairs "[[ours, ce+crt], [ours, ce-fused]]".
            null is what grid.json says. (with collect)
        check: Write nothing; fail (exit status 1) if RESULTS.md is not what it would become.
    """

    results: str = field(metadata=POSITIONAL)
    collect: str | None = None
    baseline: str | None = None
    pairs: list[list[str]] | None = None
    check: bool = False


def check_report(config: ReportConfig) -> None:
    """Check what goes together."""
    if config.collect is None:
        for name in ("baseline", "pairs"):
            value = getattr(config, name)
            check_unused(name, value, None, "without --collect", "--collect FOLDER")
    two = all(len(pair) == 2 for pair in config.pairs or [])
    check("pairs", config.pairs, two, "that has two arms in each of its lists")
    if config.check:
        check_unused("collect", config.collect, None, "with --check, which writes nothing")


@dataclass
class PresetsConfig:
    """List the presets: any protocol with any method, as --config PROTOCOL/METHOD."""
