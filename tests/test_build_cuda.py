"""What setup.py decides about the CUDA module, and what it says (tools/build_cuda.py).

Each failure that users of other CUDA extensions meet is here: no nvcc, an nvcc that is a script,
one of another major version, no visible GPU, a list of architectures that is unset or senseless.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import build_cuda
import pytest
import torch
from build_cuda import Toolkit, decide

ROOT = Path(__file__).resolve().parent.parent
TOOLKIT = Toolkit("/opt/cuda-13.0", (13, 0))
DRYRUN = """#$ _NVVM_BRANCH_=nvvm
#$ _HERE_=/opt/cuda-13.0/bin
#$ TOP=/opt/cuda-13.0/bin/..
#$ CICC_PATH=/opt/cuda-13.0/bin/../nvvm/bin
"""
VERSION = "Cuda compilation tools, release 13.0, V13.0.88"


def fake_nvcc(folder: Path, home: str, version: str = VERSION) -> Path:
    """A script named nvcc that answers as one would whose toolkit is in `home`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        f"case $1 in --dryrun) echo '#$ TOP={home}/bin/..' >&2;; *) echo '{version}';; esac\n"
    )
    path.chmod(0o755)
    return path


# --- whether ----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["auto", "1"])
def test_the_module_is_built_where_all_is_there(setting):
    decision = decide(setting, "13.2", TOOLKIT)
    assert decision.build
    assert decision.message == "fastwhiten: building the CUDA module with nvcc 13.0"


def test_a_visible_gpu_plays_no_part(monkeypatch):
    def fail():
        raise AssertionError("asked for a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert decide("auto", "13.0", TOOLKIT).build


WITHOUT = {
    "a CPU build of torch": (None, TOOLKIT, "torch is a CPU build; install one with CUDA"),
    "no nvcc": ("12.8", None, "no nvcc was found; install a CUDA 12 toolkit, or set CUDA_HOME"),
    "another major version": (
        "12.8",
        TOOLKIT,
        "nvcc 13.0 in /opt/cuda-13.0 is of another major version than torch's CUDA 12.8; set "
        "CUDA_HOME to a CUDA 12 toolkit, or install a torch for CUDA 13",
    ),
}


@pytest.mark.parametrize(("torch_cuda", "toolkit", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_what_is_missing_is_said_in_one_line(torch_cuda, toolkit, reason):
    decision = decide("auto", torch_cuda, toolkit)
    assert not decision.build
    assert decision.message.startswith(f"fastwhiten: building the CPU module only ({reason}")
    assert "\n" not in decision.message


@pytest.mark.parametrize(("torch_cuda", "toolkit", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_what_is_missing_is_an_error_where_it_was_asked_for(torch_cuda, toolkit, reason):
    with pytest.raises(RuntimeError) as caught:
        decide("1", torch_cuda, toolkit)
    assert str(caught.value).startswith(f"fastwhiten: FASTWHITEN_CUDA=1, but {reason}")


def test_zero_builds_none():
    decision = decide("0", "13.0", TOOLKIT)
    assert not decision.build
    assert decision.message.endswith("(FASTWHITEN_CUDA=0)")


def test_unknown_setting_is_an_error():
    with pytest.raises(ValueError, match="FASTWHITEN_CUDA to be auto, 0 or 1, got 'yes'"):
        decide("yes", "13.0", TOOLKIT)


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_setup_stops_with_that_error():
    environment = {**os.environ, "FASTWHITEN_CUDA": "1"}
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "FASTWHITEN_CUDA=1, but torch is a CPU build" in result.stderr


# --- with which nvcc --------------------------------------------------------------------------


def test_home_and_version_are_parsed():
    assert build_cuda.parse_home(DRYRUN) == "/opt/cuda-13.0/bin/.."
    assert build_cuda.parse_version(f"nvcc: NVIDIA\n{VERSION}\n") == (13, 0)
    assert build_cuda.parse_home("nvcc fatal") is None
    assert build_cuda.parse_version("") is None


def test_a_script_on_path_is_asked_for_its_toolkit(tmp_path):
    """The folder above the script is no toolkit: linking against it fails with -lcudart."""
    (tmp_path / "real" / "bin").mkdir(parents=True)
    fake_nvcc(tmp_path / "scripts", f"{tmp_path}/real")
    found = build_cuda.find_toolkit({"PATH": str(tmp_path / "scripts")})
    assert found == Toolkit(str(tmp_path / "real"), (13, 0))


def test_cuda_home_comes_first(tmp_path):
    for name, release in (("twelve", "12.8"), ("thirteen", "13.0")):
        fake_nvcc(tmp_path / name / "bin", f"{tmp_path}/{name}", f"release {release},")
    environment = {"CUDA_HOME": f"{tmp_path}/twelve", "PATH": f"{tmp_path}/thirteen/bin"}
    assert build_cuda.find_toolkit(environment) == Toolkit(f"{tmp_path}/twelve", (12, 8))
    del environment["CUDA_HOME"]
    assert build_cuda.find_toolkit(environment).version == (13, 0)


def test_an_nvcc_that_does_not_work_is_passed_over(tmp_path, monkeypatch):
    broken = fake_nvcc(tmp_path / "broken", "/nowhere", version="")
    monkeypatch.setattr(build_cuda, "nvcc_candidates", lambda environment: [str(broken)])
    assert build_cuda.find_toolkit({}) is None


def test_no_nvcc_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(build_cuda.os, "access", lambda path, mode: False)
    assert build_cuda.find_toolkit({"CUDA_HOME": str(tmp_path)}) is None


# --- for which architectures ------------------------------------------------------------------


@pytest.mark.parametrize("unset", [None, ""])
def test_architectures_need_no_gpu_and_no_setting(unset):
    assert build_cuda.parse_archs(unset) == ["8.0", "9.0+PTX"]


def test_architectures_follow_the_setting():
    assert build_cuda.parse_archs("8.6;9.0a 12.0+PTX") == ["8.6", "9.0a", "12.0+PTX"]


@pytest.mark.parametrize("setting", ["Hopper", "9", "7.5", "8.0;native"])
def test_architectures_that_make_no_sense_are_named(setting):
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST to be numbers from 8\.0.*got"):
        build_cuda.parse_archs(setting)


def test_flags_name_every_binary_and_the_ptx():
    flags = build_cuda.gencode_flags(["8.0", "9.0+PTX"])
    assert flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    # torch looks for a GPU only where no flag names an architecture
    assert all("arch" in flag for flag in flags)
    assert "-std=c++17" in build_cuda.nvcc_flags(["8.0"], [], ["/headers"])
