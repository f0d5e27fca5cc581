"""Runs as entries of a comparison: what was set, and that nothing else differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import flatten, to_dict
from training.data.options import resolve_cut
from training.errors import ConfigError
from training.runs.finished import Run, read_run

# Options that say where results go or how a run is continued; they may differ without a word.
UNRELATED = ("output", "resume", "dry_run", "checkpoint_every_steps")
DEFAULT_GROUPS = (
    "dataset",
    "imbalance_factor",
    "whitening",
    "loss",
    "sampler",
    "bet_period",
    "stage2",
)
_MISSING = "(no such option)"

Settings = dict[str, Any]
Entry = tuple[Run, Settings]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone: one line of the table.

    Attributes:
        key: Value of each grouped option.
        runs: From the seed to the run.
    """

    key: tuple[Any, ...]
    runs: dict[int, Run]


def settings(run: Run) -> Settings:
    """What was set for a run: the options of `train` with dotted names, and stage2 and its options.

    ``stage2`` is the method, null for a run of `train`.
    """
    found = flatten(to_dict(run.config))
    found["imbalance_factor"] = resolve_cut(run.config)[1]
    stage2 = run.summary.get("stage2")
    found["stage2"] = stage2["method"] if stage2 else None
    if stage2:
        # What stage 2 made of it is said by the method.
        found["model.classifier"] = stage2.get("first_classifier")
        options = {name: v for name, v in stage2["options"].items() if name != "seed"}
        found.update(flatten(options, "stage2."))
    return found


def find_runs(paths: Sequence[str], root: str | None) -> tuple[list[Run], list[Path]]:
    """Read the run folders, and those below a folder.

    Returns:
        The finished runs, each once, and the folders below ``root`` whose runs are not finished.

    Raises:
        ConfigError: If a path is no finished run, or there is no run at all.
    """
    folders = [Path(path) for path in paths]
    unfinished: list[Path] = []
    if root is not None:
        if not Path(root).is_dir():
            raise ConfigError(f"root: expected a folder with run folders, {root} is none.")
        for config in sorted(Path(root).rglob("config.yaml")):
            finished = (config.parent / "summary.json").is_file()
            (folders if finished else unfinished).append(config.parent)
    unique = {folder.resolve(): folder for folder in reversed(folders)}
    runs = [read_run(folder) for folder in reversed(unique.values())]
    if not runs:
        raise ConfigError(f"root: expected finished runs below {root}, found none.")
    return runs, unfinished


def group_runs(
    runs: Iterable[Run], group_by: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[list[str], list[Group]]:
    """Sort runs into groups.

    Args:
        runs: Finished runs.
        group_by: Names of options; null is `DEFAULT_GROUPS` as far as the runs have them.
        ignore: Names of options that may differ.

    Returns:
        The names of the grouped options, and the groups, sorted by first appearance.

    Raises:
        ConfigError: If there is no such option, if runs differ in anything else than the seed and
            the grouped options, or if a group has a seed twice.
    """
    entries = [(run, settings(run)) for run in runs]
    known = {name for _, found in entries for name in found}
    keys = _checked_keys(known, group_by, ignore)
    members: dict[str, list[Entry]] = {}
    for run, found in entries:
        members.setdefault(json.dumps(_key(found, keys)), []).append((run, found))
    free = ("seed", *UNRELATED, *ignore)
    for listed in members.values():
        _refuse_differences(listed, (*free, *(key for key in keys if key in known)), exact=True)
    _refuse_differences(entries, (*free, *keys), exact=False)
    return keys, [_group(keys, listed) for listed in members.values()]


def _checked_keys(
    known: set[str], group_by: Sequence[str] | None, ignore: Sequence[str]
) -> list[str]:
    """The names to group by; all names must be options or sections."""
    default = [name for name in DEFAULT_GROUPS if name in known]
    keys = default if group_by is None else list(group_by)
    for option, names in (("group_by", keys), ("ignore", ignore)):
        for name in names:
            if not any(key == name or key.startswith(f"{name}.") for key in known):
                raise ConfigError(
                    f"{option}: expected names of options, got {name!r}; the runs have: "
                    f"{', '.join(sorted(known))}."
                )
    return keys


def _group(keys: Sequence[str], listed: Sequence[Entry]) -> Group:
    """Put the runs of a line together; each seed must be there once."""
    group = Group(_key(listed[0][1], keys), {})
    for run, _ in listed:
        seed = run.config.seed
        if seed in group.runs:
            line = ", ".join(f"{name} {value}" for name, value in zip(keys, group.key, strict=True))
            raise ConfigError(
                f"runs: expected each seed once per line of the table, got seed {seed} of {line} "
                f"twice: {group.runs[seed].folder.path} and {run.folder.path}; leave one out."
            )
        group.runs[seed] = run
    return group


def _key(found: Settings, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_value(found, name) for name in keys)


def _value(found: Settings, name: str) -> Any:
    """The value of an option, or of all options of a section."""
    if name in found:
        return found[name]
    return {k: v for k, v in found.items() if k.startswith(f"{name}.")} or None


def _refuse_differences(entries: Sequence[Entry], free: Sequence[str], *, exact: bool) -> None:
    """Raise if any two runs differ in an option that is not free.

    Args:
        entries: Runs with their settings.
        free: Names of options or sections that may differ.
        exact: Within a line: "stage2" being free does not free "stage2.tau".
    """
    first, reference = entries[0]
    sections = [name for name in free if name not in reference] if exact else list(free)
    for run, found in entries[1:]:
        for name in sorted(reference.keys() | found.keys()):
            inside = any(name.startswith(f"{section}.") for section in sections)
            here, there = reference.get(name, _MISSING), found.get(name, _MISSING)
            if name in free or inside or here == there:
                continue
            raise ConfigError(
                f"runs: expected runs that differ in their seed and the grouped options alone, but "
                f"{name} is {here!r} in {first.folder.path} and {there!r} in {run.folder.path}; "
                f"add --group_by '[..., {name}]' or --ignore '[{name}]', or leave one out."
            )
