"""The compiled modules: where they are found, and whether they were built from these sources.

``fastwhiten_cpu`` and ``fastwhiten_cuda`` have names of their own beside the package. So code that
is run from a checkout, whose ``fastwhiten/`` comes before the installed one, finds the modules that
``pip install .`` put into the environment. Each carries how it was built, with a fingerprint of its
sources: modules and Python code that do not belong together are told, not run.

setup.py loads this file by its path, before there is a package: the standard library is enough.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Written by kernel-builder into a build for the Hugging Face Hub, beside the package's __init__.py.
METADATA = Path(__file__).parents[1] / "metadata.json"
# Written into wheels, where there is no csrc/: the fingerprints of what was built with the package.
RECORD = Path(__file__).with_name("_sources.json")
# What each module is compiled from, below csrc/.
SOURCES = {
    "fastwhiten_cpu": ("module.cpp", "common", "ops", "cpu"),
    "fastwhiten_cuda": ("common", "ops", "cuda"),
}
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def files(folder: Path, entries: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Return the files of these endings among ``entries``, files or folders below ``folder``."""
    paths = [folder / entry for entry in entries]
    found = {p for path in paths for p in (path.rglob("*") if path.is_dir() else [path])}
    return sorted(path for path in found if path.suffix in suffixes and path.is_file())


def fingerprint(folder: Path, found: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the name or the content of any file.

    Args:
        folder: what the names are relative to: a copy of the sources elsewhere has the same.
        found: what :func:`files` returned.
    """
    digest = hashlib.sha256()
    for path in found:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def of_sources(csrc: Path) -> dict[str, str]:
    """Return the fingerprint of every module's sources below ``csrc``."""
    return {name: fingerprint(csrc, files(csrc, entries)) for name, entries in SOURCES.items()}


def expected() -> dict[str, str]:
    """Return the fingerprints of the modules that belong to this Python code.

    In a checkout, those of its csrc/ as it is now; elsewhere what the wheel recorded.
    """
    if RECORD.exists():
        return dict(json.loads(RECORD.read_text(encoding="utf-8")))
    return of_sources(ROOT / "csrc")


def load(name: str) -> dict[str, Any]:
    """Import the module ``name``, which registers its ops; return how it was built.

    Returns:
        What setup.py recorded, and "file": the path of what was loaded.

    Raises:
        ImportError: there is none, it cannot be loaded, or it was built from other sources. The
            text says what to do.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        text = f"{name} is not installed for {sys.executable}; {_install()}"
        raise ImportError(text, name=name) from None
    except ImportError as error:
        raise ImportError(f"{name} cannot be loaded ({error}); {_install()}", name=name) from error
    built = _built(module)
    if built["sources"][name] != expected()[name]:
        raise ImportError(_other_sources(name, built), name=name)
    return built


def of_hub(module: ModuleType) -> dict[str, Any]:
    """Return how the one module of a build for the Hub was built, as :func:`load` does.

    It came with this Python code. For which GPUs, if any, kernel-builder has recorded.
    """
    backend = json.loads(METADATA.read_text(encoding="utf-8"))["backend"]
    return {**_built(module), "cuda_archs": backend.get("archs") or []}


def _built(module: ModuleType) -> dict[str, Any]:
    return {**json.loads(module.build), "file": str(module.__file__)}


def _install() -> str:
    where = ROOT if (ROOT / "setup.py").exists() else "the source folder"
    return f"run `pip install .` in {where}"


def _other_sources(name: str, built: dict[str, Any]) -> str:
    """Return what is said about a module that was built from other sources: who is older."""
    file, ours = Path(built["file"]), RECORD
    if not RECORD.exists():
        sources = files(ROOT / "csrc", SOURCES[name])
        ours = max(sources, key=lambda path: path.stat().st_mtime, default=Path(__file__))
    older = file.stat().st_mtime < ours.stat().st_mtime
    if older:
        text = f"{file} is older than {ours}: it was built from other sources; {_install()}"
    else:
        text = (
            f"{file} is newer than every source of {ROOT}, and was built from other ones "
            f"(of version {built['version']}); update the sources, or {_install()}"
        )
    if file.parent == ROOT:  # an editable install's: it comes before any that pip install . makes
        text = text.replace("pip install .", "pip install -e .") + f", or delete {file}"
    return text
