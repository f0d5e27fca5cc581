"""The command ``data``."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from training.commands.data_stats import plot_class_counts, print_stats
from training.config import DataConfig, TrainConfig, validate
from training.config.checks import check_unused
from training.config.commands import DataCommandConfig
from training.console import say
from training.data import build_dataset
from training.data.base import FileSplit, LongTailedDataset
from training.errors import ConfigError
from training.reproducibility import resolve_seeds


def run_data(config: DataCommandConfig, console: Console | None = None) -> None:
    """Print the statistics of a data set and draw them, verify its files, or copy some.

    Raises:
        ConfigError: If an option makes no sense, or a file is not right.
    """
    console = console or Console()
    run = config.as_train()
    validate(run)
    split_seed = resolve_seeds(run.seed, run.seeds).split
    if config.action != "stats":
        where = f"with data {config.action}, which draws none"
        check_unused("picture", config.picture, None, where, "data stats")
    if config.action != "copy":
        where = f"with data {config.action}, which writes none"
        check_unused("output", config.output, None, where, "data copy")
    if config.action == "verify":
        verify(run, split_seed, console)
        return
    dataset = build_dataset(run, split_seed)
    if config.action == "copy":
        copy_images(dataset, config.output, console)
        return
    print_stats(console, dataset)
    path = Path(config.picture or f"runs/class-counts-{config.dataset}.png")
    plot_class_counts(path, dataset)
    say(console, f"picture: {path}")


def copy_images(dataset: LongTailedDataset, output: str | None, console: Console) -> None:
    """Copy the files of the splits, and no others, to a folder that image-folder takes as it is.

    Raises:
        ConfigError: If the data set is no image-folder, or the folder is there.
    """
    if dataset.name != "image-folder" or dataset.resident:
        raise ConfigError(
            f"data copy: expected --dataset image-folder without --data.resident, got "
            f"{dataset.name}{', resident' if dataset.resident else ''}."
        )
    if output is None or Path(output).exists():
        raise ConfigError(f"output: expected a folder that is not there yet, got {output!r}.")
    folders = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    size = 0
    for folder, split in folders.items():
        assert isinstance(split, FileSplit)
        for path in map(Path, split.paths):
            target = Path(output) / folder / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.name)
            size += path.stat().st_size
    count = sum(map(len, folders.values()))
    say(console, f"{output}: {count:,} images, {size / 2**20:.1f} MiB")
    if dataset.cut:
        say(console, dataset.cut)


_SHOWN = 20


def verify(config: TrainConfig, split_seed: int, console: Console) -> None:
    """Check all files of a data set; print what was checked.

    Whole-format files are parsed, and compared with the published checksums; of folders and lists
    every image is decoded, those that a long-tail cut would drop included.

    Raises:
        ConfigError: Naming every file (up to 20) that is not right.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are printed below
        dataset = build_dataset(_uncut(config), split_seed, check_files=False)
    lines = [f"{dataset.name}: {_describe(dataset)}"]
    if not dataset.resident:
        count, plain = _decode_all(dataset)
        lines.append(f"decoded {count} image files, none is broken")
        if plain:
            lines.append(f"note: {len(plain)} images are of one colour, for instance {plain[0]}")
    lines.extend(f"note: {note}" for note in dataset.notes)
    for line in lines:
        say(console, line)


def _uncut(config: TrainConfig) -> TrainConfig:
    """Return the configuration in which every image is in a split."""
    if config.dataset == "digits-lt":
        return config
    data: DataConfig = replace(
        config.data, imbalance_type="natural", class_order_seed=None, validation_from=None
    )
    if config.dataset != "image-folder":
        data = replace(data, validation_per_class=0)
    return replace(config, data=data, imbalance_factor=None)


def _describe(dataset: LongTailedDataset) -> str:
    sizes = {
        "training": len(dataset.train),
        "validation": len(dataset.validation),
        "test": len(dataset.test),
    }
    return (
        ", ".join(f"{size} {name} images" for name, size in sizes.items() if size)
        + f" of {dataset.num_classes} classes; format and labels are right"
    )


def _decode_all(dataset: LongTailedDataset) -> tuple[int, list[str]]:
    """Decode every file once; return their number, and those of one colour."""
    from training.data.files import look_at_files

    splits = (dataset.train, dataset.validation, dataset.test)
    paths = [path for split in splits if isinstance(split, FileSplit) for path in split.paths]
    paths = list(dict.fromkeys(paths))  # validation and test may be one list
    broken, plain = look_at_files(paths)
    if broken:
        more = f"\n... and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ConfigError(
            f"{len(broken)} of {len(paths)} image files are not right:\n"
            + "\n".join(broken[:_SHOWN])
            + more
        )
    return len(paths), plain
