"""The stages as other processors and other builds of PyTorch would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAGE_TESTS = (
    "test_stages.py",
    "test_stages_apply.py",
    "test_whole_passes.py",
    "test_eigensolver.py",
)


def _run(code_or_arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *code_or_arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def _ask(op: str, **variables: str) -> str:
    """Return what a fresh process says of itself; the environment is read once per process."""
    code = f"import torch, fastwhiten; print(torch.ops.fastwhiten.{op}())"
    return _run(["-c", code], **variables).stdout.strip()


def test_baseline_can_be_asked_for():
    assert _ask("cpu_capability", FASTWHITEN_CPU_CAPABILITY="baseline") == "baseline"


def test_more_than_the_processor_has_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FASTWHITEN_CPU_CAPABILITY", raising=False)
    best = _ask("cpu_capability")
    assert _ask("cpu_capability", FASTWHITEN_CPU_CAPABILITY="avx512") == best


def test_lookup_of_lapack_can_be_switched_off():
    assert _ask("linear_algebra_provider", FASTWHITEN_DISABLE_LAPACK_LOOKUP="1") == "aten"


@pytest.mark.parametrize(
    "variables",
    [
        {"FASTWHITEN_CPU_CAPABILITY": "baseline"},
        {"FASTWHITEN_CPU_CAPABILITY": "avx2"},
        {"FASTWHITEN_DISABLE_LAPACK_LOOKUP": "1"},
    ],
    ids=lambda v: "-".join(v.values()),
)
def test_stages_hold_there_too(variables):
    files = [str(ROOT / "tests" / "backends" / name) for name in STAGE_TESTS]
    native = ["-k", "not reference and not triton"]
    done = _run(
        ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *native, *files], **variables
    )
    assert done.returncode == 0, done.stdout[-3000:]
