"""Other batches compile nothing new, by Triton's own rules: nothing runs, and no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# More rows than int32 counts, of tensors that have no memory; before these, one that compiles all.
BATCHES = (2000, 1, 2, 15, 16, 17, 63, 64, 2**31 + 16)


def launched() -> dict[str, list[list[str]]]:
    """Return what each launch of a family compiles, the first one being what all are to compile."""
    import triton_resources as tool
    from triton_launches import Recorder

    half, single, double = torch.float16, torch.float32, torch.float64
    families = {
        "rows": [
            lambda s=s: tool.rows_stages(s, 1, half, single, False)
            for s in (*((m, 64) for m in BATCHES), (9, 64, 1))
        ],
        "planes": [
            lambda n=n: tool.rows_stages((n, 96, 49), 2, single, single, True) for n in BATCHES
        ],
        "aligned planes": [
            lambda n=n: tool.rows_stages((n, 40, 64), 2, double, double, True) for n in BATCHES
        ],
        "groups": [
            lambda g=g: tool.rows_stages((2000, g * 160), g, single, single, True)
            for g in (2, 1, 3, 16)
        ],
        "sizes": [
            lambda d=d: tool.rows_stages((2000, d), 1, single, single, False) for d in (10, 1, 3)
        ],
        "matrices": [
            lambda a=a: tool.matrix_stages(*a, single, True)
            for a in ((3, 50), (1, 33), (16, 63))  # groups, size
        ],
        "small matrices and values": [
            lambda a=a: tool.matrix_stages(*a)
            for a in ((3, 5, double, False), (1, 1, double, False, 0.0), (3, 2, double, False, 1.0))
        ],
    }
    for block, others in (16, (1, 2, 15)), (32, (17, 31)), (64, (33, 48, 63)):
        families[f"sample side, {block}"] = [
            lambda m=m: tool.sample_stages(m, 256, 2, single, single, True)
            for m in (block, *others)
        ]
    found = {}
    for name, launches in families.items():
        found[name] = []
        for launch in launches:
            with Recorder() as recorder:
                launch()
            found[name].append([f"{c.key} {c.types}" for c in recorder.found])
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[list[str]]]:
    """A process of its own: kernels of this one are interpreted, and compile nothing."""
    program = f"import json, {__name__} as t; print(json.dumps(t.launched()))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tools'}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


FAMILIES = ["rows", "planes", "aligned planes", "groups", "sizes", "matrices"]
FAMILIES += ["small matrices and values", *(f"sample side, {block}" for block in (16, 32, 64))]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_new(family: str, compiled: dict[str, list[list[str]]]) -> None:
    first, *others = compiled[family]
    assert len(first) >= 5 and len(others) >= 2
    for other in others:
        assert set(other) <= set(first)


def test_loads_of_sixteen_bytes_stay_known(compiled: dict[str, list[list[str]]]) -> None:
    """An address, a size and a length that 16 divides: without it, four times the loads."""
    rows, planes = compiled["rows"][0], compiled["aligned planes"][0]
    assert any(key.startswith("apply_kernel(") and "; size % 16;" in key for key in rows)
    assert any(key.startswith("apply_kernel(") and "; length % 16;" in key for key in planes)
    assert not any(" odd" in key for key in rows)
