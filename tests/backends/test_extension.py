"""Compiled modules and Python code that belong together find each other; others are told apart."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastwhiten.backends import extension

ROOT = Path(extension.ROOT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without a compiled module of its own, as after ``pip install .``."""
    for folder in ("fastwhiten", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "emulation")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def whiten_in(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch, fastwhiten; fastwhiten.whiten(torch.randn(8, 3));"
        "from fastwhiten import info;"
        "print(info.machine()['package'], info.build()['fastwhiten_cpu'])"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_checkout_takes_the_installed_module(checkout: Path) -> None:
    ran = whiten_in(checkout)
    installed = sys.modules["fastwhiten_cpu"].__file__
    assert ran.stdout.split() == [str(checkout / "fastwhiten"), installed], ran.stderr


def test_a_module_that_is_older_than_the_sources_is_refused(checkout: Path) -> None:
    changed = checkout / "csrc" / "cpu" / "apply.cpp"
    with changed.open("a") as file:
        file.write("// another line\n")
    error = whiten_in(checkout).stderr.splitlines()[-1]
    installed = sys.modules["fastwhiten_cpu"].__file__
    assert error.startswith(
        f'RuntimeError: backend="auto": {installed} is older than {changed}: it was built from '
        "other sources; run `pip install .` in "
    )


@pytest.mark.slow
def test_a_module_that_is_newer_than_the_sources_is_refused(checkout: Path) -> None:
    (checkout / "csrc" / "cpu" / "apply.cpp").write_text("// of an earlier version\n")
    for path in (checkout / "csrc").rglob("*"):
        os.utime(path, (0, 0))
    error = whiten_in(checkout).stderr.splitlines()[-1]
    assert re.search(r"is newer than every source of .* \(of version \d[\d.]*\); update", error)


@pytest.mark.slow
def test_a_module_beside_the_sources_may_be_in_the_way(checkout: Path) -> None:
    """An editable install's comes before any that ``pip install .`` makes."""
    stale = Path(shutil.copy(sys.modules["fastwhiten_cpu"].__file__, checkout))
    with (checkout / "csrc" / "ops" / "ops.h").open("a") as file:
        file.write("// another line\n")
    error = whiten_in(checkout).stderr.splitlines()[-1]
    assert f"run `pip install -e .` in {checkout}, or delete {stale};" in error


@pytest.mark.slow
def test_a_package_without_sources_has_a_record(checkout: Path) -> None:
    """As a wheel is: what was built with it stands in a file."""
    shutil.rmtree(checkout / "csrc")
    (checkout / "setup.py").unlink()
    record = checkout / "fastwhiten" / "backends" / "_sources.json"
    record.write_text(json.dumps(extension.of_sources(ROOT / "csrc")))
    assert whiten_in(checkout).returncode == 0
    record.write_text(json.dumps({"fastwhiten_cpu": "0" * 16}))
    error = whiten_in(checkout).stderr.splitlines()[-1]
    assert f"is older than {record}" in error and "in the source folder" in error


def test_a_missing_module_says_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"no_such is not installed for .*; run `pip install \.`"):
        extension.load("no_such")

    def fail(name: str) -> None:
        raise ImportError("libc10.so: undefined symbol")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"cannot be loaded \(libc10.so: undefined symbol\); run"):
        extension.load("fastwhiten_cpu")


def test_what_a_module_misses_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="No module named 'torch'"):
        extension.load("fastwhiten_cpu")


def test_the_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    def of(**sources: str) -> dict[str, str]:
        shutil.rmtree(tmp_path / "csrc", ignore_errors=True)
        for name, text in sources.items():
            path = tmp_path / "csrc" / name.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".cpp").write_text(text)
        return extension.of_sources(tmp_path / "csrc")

    first = of(cpu_a="1", cpu_b="2")
    assert first == of(cpu_b="2", cpu_a="1", emulation_c="3")
    for other in (of(cpu_a="12", cpu_b=""), of(cpu_a="1", cpu_c="2"), of(cpu_a="1")):
        assert other["fastwhiten_cpu"] != first["fastwhiten_cpu"]
        assert other["fastwhiten_cuda"] == first["fastwhiten_cuda"]
    assert of(cuda_a="1")["fastwhiten_cuda"] != first["fastwhiten_cuda"]


def test_every_compiled_source_counts() -> None:
    """setup.py compiles them; the headers that they include lie in the same folders."""
    csrc = ROOT / "csrc"
    entries = {entry for entries in extension.SOURCES.values() for entry in entries}
    sources = [path for path in csrc.rglob("*") if path.suffix in extension.SUFFIXES]
    compiled = [path for path in sources if "emulation" not in path.parts]
    assert extension.files(csrc, entries) == sorted(compiled)
