"""Presets: a published protocol and a method, as ``--config cifar100-lt-100/ldam-drw``.

A preset is two or three YAML files, read one after the other:

* ``<protocol>/protocol.yaml``: data, network and schedule, with their source;
* ``methods/<method>.yaml``: whitening, loss and sampler, with their source;
* ``<protocol>/<method>.yaml``, if it is there: what the method needs under this protocol.

Options beside ``--config`` come later and win. To add a protocol or a method, add a file.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from training.errors import ConfigError

FOLDER = Path(__file__).parent


def protocols() -> list[str]:
    """Names of the protocols, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/protocol.yaml"))


def methods() -> list[str]:
    """Names of the methods, sorted, ours first."""
    names = sorted(path.stem for path in (FOLDER / "methods").glob("*.yaml"))
    return sorted(names, key=lambda name: name != "ours")


def is_preset_name(text: str) -> bool:
    """Whether a value of --config means a preset: no such file, and a name in two parts."""
    return not Path(text).exists() and text.count("/") == 1 and not text.endswith((".yaml", ".yml"))


def preset_files(name: str) -> list[Path]:
    """Return the files of a preset, in the order in which they are read.

    Raises:
        ConfigError: If there is no such protocol or method.

    Example:
        >>> [path.relative_to(FOLDER).as_posix() for path in preset_files("imagenet-lt/ours")]
        ['imagenet-lt/protocol.yaml', 'methods/ours.yaml', 'imagenet-lt/ours.yaml']
    """
    protocol, _, method = name.partition("/")
    for part, kind, known in ((protocol, "protocol", protocols()), (method, "method", methods())):
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ConfigError(
                f"config: expected a file or a preset PROTOCOL/METHOD, got {name!r}, and there is "
                f"no {kind} {part!r}.{hint} Known ones: {', '.join(known)}."
            )
    files = [FOLDER / protocol / "protocol.yaml", FOLDER / "methods" / f"{method}.yaml"]
    special = FOLDER / protocol / f"{method}.yaml"
    return [*files, special] if special.exists() else files


def first_comment(path: Path) -> str:
    """Return the first line of a preset file, which says what it is."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def expand_presets(arguments: list[str]) -> list[str]:
    """Replace ``--config PROTOCOL/METHOD`` by one --config per file.

    Raises:
        ConfigError: If there is no such protocol or method.
    """
    expanded: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--config":
            value = next(waiting, None)
            if value is None:
                expanded.append(argument)  # the parser says that a value is missing
                continue
        elif argument.startswith("--config="):
            value = argument.removeprefix("--config=")
        else:
            expanded.append(argument)
            continue
        files = [str(path) for path in preset_files(value)] if is_preset_name(value) else [value]
        expanded.extend(f"--config={file}" for file in files)
    return expanded
