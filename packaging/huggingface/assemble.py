"""Writes the folder that Hugging Face's kernel-builder builds: assemble.py FOLDER.

It wants sources, Python code and build.toml below one folder that is a git repository. To publish:

    python packaging/huggingface/assemble.py ../fastwhiten-hub
    cd ../fastwhiten-hub && git init && git add --all && git commit -m 'fastwhiten'
    kernel-builder check-config && kernel-builder build-and-upload

with the repository on the Hub as `repo-id` in build.toml's section [general.hub].
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_helpers as helpers  # noqa: E402

BUILDER = "kernel-builder's"


def assemble(folder: Path) -> None:
    """Write sources, package, build.toml, card and flake to `folder`, a new or an empty one."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"expected a folder that is new or empty, got {folder}")
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("*.csv"))
    # kernel-builder writes _ops.py, with the namespace of each build.
    ignored = shutil.ignore_patterns("__pycache__", "_ops.py", "_sources.json", "py.typed")
    package = folder / "torch-ext" / "fastwhiten"
    shutil.copytree(ROOT / "fastwhiten", package, ignore=ignored)
    for name in ("build.toml", "CARD.md", "flake.nix"):
        shutil.copy(HERE / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    text = (package / "__init__.py").read_text(encoding="utf-8")
    build = {
        "version": re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1],
        "sources": helpers.extension().of_sources(ROOT / "csrc"),
        "torch": BUILDER,
        "compiler": BUILDER,
        "flags": "build.toml's",
        "torch_target": helpers.TORCH_TARGET,
        "cuda": BUILDER,
    }
    header = folder / "csrc" / "fastwhiten_build.h"
    header.write_text(helpers.build_header(build), encoding="utf-8")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
