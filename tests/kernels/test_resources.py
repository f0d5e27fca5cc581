"""Every kernel compiles for GPUs that need not be there, and spills three numbers at most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "triton_resources.py"


@pytest.mark.full
def test_largest_shape_class_compiles_and_equals_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own: kernels of this one are interpreted, and cannot be compiled."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, str(TOOL), "--largest"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "eigh_kernel" in done.stdout and "sample_backward_kernel" in done.stdout


def test_table_holds_every_kernel_for_both_architectures() -> None:
    table = json.loads(TOOL.with_suffix(".json").read_text(encoding="utf-8"))
    kernels = {key.split("(")[0] for key in table["configurations"]}
    sources = (ROOT / "fastwhiten" / "kernels").glob("*.py")
    defined = {
        line.split("(")[0].removeprefix("def ")
        for source in sources
        for line in source.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert kernels == defined, "launch it in tools/triton_resources.py, and run that with --write"
    for key, row in table["configurations"].items():
        assert set(row) == {"sm_80", "sm_90"}, key
        assert all(u["stack"] <= 24 and not u["local"] for u in row.values()), key
