"""A run of the tests thins products without losing a pair, and ends whatever a test does."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiers

ROOT = Path(__file__).resolve().parents[1]
AXES = {"a": range(7), "b": range(4), "c": range(3), "d": range(2), "e": range(2)}
PRODUCT = [tuple(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


@pytest.mark.parametrize(("strength", "most"), [(1, 7), (2, 34), (3, 150)])
def test_cover_keeps_every_combination(strength: int, most: int) -> None:
    """At least 7 * 4 * 3 ** (strength - 2) cases are needed; greedy takes a fifth more."""
    kept = [PRODUCT[index] for index in tiers.cover(PRODUCT, strength)]
    assert len(kept) <= most

    def combinations(cases):
        return {found for case in cases for found in itertools.combinations(case, strength)}

    assert combinations(kept) == combinations(PRODUCT)


def test_cover_of_what_is_no_product() -> None:
    cases = [(("a", 0), ("b", 0)), (("a", 1), ("b", 1)), (("a", 1), ("b", 0))]
    assert tiers.cover(cases, 2) == [0, 1, 2]
    assert tiers.cover(cases, 1) == [0, 1]
    assert tiers.cover([(("a", value),) for value in range(3)], 2) == [0, 1, 2]
    assert tiers.cover([(), ()], 2) == [0]


PLANTED = """
import os
import threading
import pytest

@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("a", range(2))
@pytest.mark.parametrize("c", [0, 1, pytest.param(2, marks=pytest.mark.full)])
def test_product(a, b, c):
    pass

@pytest.mark.slow
@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("a", range(2))
def test_slow(a, b):
    pass

@pytest.mark.smoke
@pytest.mark.interpret
@pytest.mark.parametrize("a", range(3))
def test_smoke(a):
    pass

@pytest.mark.full
def test_full():
    pass

def test_planted():
    if os.environ.get("PLANTED") == "crash":
        os.abort()
    if os.environ.get("PLANTED") == "hang":
        threading.Event().wait()
"""


def run(folder: Path, *options: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run PLANTED with this project's configuration, as a test of it."""
    file = folder / "test_file.py"
    file.write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-q"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", *options, str(file)]
    known = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment = {**known, "PYTHONPATH": str(ROOT), "PLANTED": planted}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "counts"),
    [
        # Of 2 x 3 x 2 cases every pair; of those that are slow every value; all smoke tests.
        ("test", {"product": 6, "slow": 3, "smoke": 3, "planted": 1}),
        ("check", {"product": 3, "smoke": 1, "planted": 1}),
        ("all", {"product": 18, "slow": 6, "smoke": 3, "full": 1, "planted": 1}),
    ],
)
def test_tiers(tmp_path: Path, tier: str, counts: dict[str, int]) -> None:
    ran = run(tmp_path, "--tier", tier, "--collect-only")
    names = re.findall(r"::test_(\w+)", ran.stdout)
    assert {name: names.count(name) for name in names} == counts, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["crash", "hang"])
def test_a_run_in_processes_ends_with_the_name_of_the_test(tmp_path: Path, planted: str) -> None:
    """Otherwise pytest-xdist starts another worker, which runs the same test again, for ever."""
    ran = run(tmp_path, "-n", "2", "--dist", "loadgroup", "--timeout", "3", planted=planted)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(r"worker 'gw\d' crashed while running '.*::test_planted'", ran.stdout)


@pytest.mark.slow
def test_a_hang_in_one_process_shows_where(tmp_path: Path) -> None:
    ran = run(tmp_path, "--timeout", "3", planted="hang")
    assert ran.returncode == 1
    assert "in test_planted" in ran.stdout + ran.stderr
