"""The examples of the documentation run as plain scripts, draw, and hold what they assert.

`make docs`, also in CI, runs them and their assertions; here it is done without Sphinx.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import with_parent

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))
pytestmark = [pytest.mark.full, pytest.mark.xdist_group("examples")]

# Where the documentation shows a picture, this counts it.
COUNT_PICTURES = """
import runpy, sys
import matplotlib.pyplot as plt

def show():
    shown.append(plt.get_fignums())
    plt.close("all")

shown, plt.show = [], show
runpy.run_path(sys.argv[1], run_name="__main__")
assert shown and all(shown), f"figures at every plt.show(): {shown}"
assert not plt.get_fignums(), "figures behind the last plt.show()"
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    # From a folder of its own: an example needs no file of the repository.
    command = with_parent([sys.executable, "-c", COUNT_PICTURES, path])
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout and not done.stderr
    assert not list(tmp_path.iterdir())


def test_examples_are_found() -> None:
    assert EXAMPLES
