"""`make lint` and the hooks of pre-commit run the same tools, whose versions are pinned once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
TOOLS = ("ruff", "mypy", "clang-format")
(REPOSITORY,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS = REPOSITORY["hooks"]


def test_the_commands_are_the_same() -> None:
    commands = re.findall(rf"\$\(BIN\)/((?:{'|'.join(TOOLS)})\b.*)", RECIPE)
    assert [hook["entry"] for hook in HOOKS] == commands
    assert len(commands) == 4


def test_the_files_of_clang_format_are_the_same() -> None:
    find = re.search(r"\t(find .*) \| xargs", RECIPE)[1]
    found = subprocess.run(find, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("[!.]*/**/*") if p.is_file()]
    (pattern,) = (hook["files"] for hook in HOOKS if "files" in hook)
    paths = [path for path in paths if re.search(pattern, path)]
    assert sorted(found.stdout.split()) == sorted(paths)


def test_versions_are_pinned_once() -> None:
    # A repository of hooks, or a hook with an environment of its own, would bring other versions.
    assert REPOSITORY["repo"] == "local"
    assert {hook["language"] for hook in HOOKS} == {"system"}
    constraints = (ROOT / "constraints.txt").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for tool in (*TOOLS, "pre-commit"):
        assert len(re.findall(rf"^{tool}==", constraints, re.MULTILINE)) == 1, tool
        assert not re.search(rf"\b{tool}\s*[=<>~]=", project + RECIPE), tool
