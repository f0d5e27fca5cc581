"""python -m fastwhiten.info."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastwhiten
from fastwhiten import backends, info
from fastwhiten.backends import cuda_module, native


def test_command_prints_every_section():
    command = [sys.executable, "-m", "fastwhiten.info"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    titles = [line for line in shown.splitlines() if not line.startswith(" ")]
    assert titles == ["versions", "machine", "build", "backends", 'which backend "auto" takes']
    assert f"torch       {torch.__version__}" in shown


def test_json_holds_the_same_facts(capsys):
    info.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["fastwhiten"] == fastwhiten.__version__
    assert found["backends"] == backends.available()
    assert [tuple(case.values()) for case in found["cases"]] == backends.explain()


def test_build_tells_how_the_extension_was_made():
    how = info.build()
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in how["flags"]
    assert how["stable ABI target"] == "0x020a000000000000"
    assert how["compiler"]
    assert how["linear algebra"] == torch.ops.fastwhiten.linear_algebra_provider()


@pytest.mark.skipif(bool(cuda_module.build), reason="fastwhiten_cuda is installed")
def test_build_tells_that_no_gpu_is_served():
    assert info.build()["fastwhiten_cuda"] == info.build()["wide groups on a GPU"] == "absent"


def test_build_tells_which_file_was_loaded():
    assert info.build()["fastwhiten_cpu"] == sys.modules["fastwhiten_cpu"].__file__
    assert info.machine()["package"] == str(Path(fastwhiten.__file__).parent)


def test_missing_extension_is_explained(monkeypatch):
    reason = "fastwhiten_cpu is not installed"
    monkeypatch.setattr(native, "build", {})
    monkeypatch.setattr(native, "import_error", reason)
    found = info.collect()
    assert found["build"] == {}
    assert f"native     absent: {reason}" in info.render(found)


def test_missing_package_is_absent(monkeypatch):
    def missing(name):
        raise info.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "version", missing)
    found = info.versions()
    assert found["triton"] == found["numpy"] == "absent"
