"""The table of a GPU check: nobody who failed or is missing is left out, nothing is called good."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_parts
import gpu_summary
import gpu_targets
import pytest

SUMMARY = Path(gpu_summary.__file__)


def timed(microseconds: float, **more: float) -> dict[str, float]:
    return {"eager_us": microseconds, **more}


def good_results() -> dict[str, Any]:
    """Results that reach every target."""
    whole = {
        "(128, 64)": {
            "eager": timed(4000),
            "iternorm": timed(900),
            "fused": timed(400, graph_us=150),
        },
        "(512, 64)": {"fused": timed(450, graph_us=200)},
        "(512, 8 x 64)": {"fused": timed(500, graph_us=250)},
        "(256, 2048)": {"eager": timed(90_000), "fused": timed(9_000)},
    }
    solver = {
        "native": timed(300),
        "library": timed(700),
        "triton": {"not_measured": "order 128 would spill", "by_design": True},
    }
    ours = {"ours": timed(60, operations=1e9), "library": timed(50, operations=1e9)}
    stage = {"native": timed(9), "triton": timed(12, graph_us=8), "reference": timed(90)}
    measured = {
        "whole": whole,
        "eigensolvers": {"1 x 128": solver},
        "training step": {"ResNet-32": {"without": timed(5000), "with": timed(5200)}},
        "products": {"[8192, 256] apply": ours},
        "stages": {"(128, 64) apply": stage},
    }
    expected = {
        section: {case: list(found) for case, found in cases.items()}
        for section, cases in measured.items()
    }
    machine = {"device": "a GPU", "torch": "2.11", "cuda": "13.0", "triton": "3.6"}
    return {"machine": machine, "dry_run": False, "expected": expected, "measured": measured}


def suite(failed: int = 0) -> str:
    failure = "<failure message='wrong'/>" if failed else ""
    return (
        f"<testsuites><testsuite tests='3' failures='{failed}' errors='0' skipped='1'>"
        f"<testcase classname='tests.gpu' name='test_a'>{failure}</testcase>"
        "<testcase classname='tests.gpu' name='test_b'/>"
        "<testcase classname='tests.gpu' name='test_c'><skipped message='needs two'/></testcase>"
        "</testsuite></testsuites>"
    )


class Folder:
    """A folder of results, good until a test breaks something in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, good_results()
        self.measured = self.results["measured"]
        part = {"state": "passed", "seconds": 12.0, "sources": "abc", "log": "x.log"}
        self.parts = {name: dict(part) for name in gpu_summary.PARTS}
        self.dry, self.tests = False, suite()

    def summary(self) -> tuple[int, str]:
        """Write the files, run the program; return its exit status and what it prints."""
        state = {"dry_run": self.dry, "sources": "abc", "parts": self.parts}
        (self.path / gpu_summary.PARTS_FILE).write_text(json.dumps(state))
        (self.path / gpu_summary.BENCHMARKS_FILE).write_text(json.dumps(self.results))
        (self.path / gpu_summary.TESTS_FILE).write_text(self.tests)
        done = subprocess.run(
            [sys.executable, SUMMARY, self.path], capture_output=True, text=True, check=False
        )
        assert not done.stderr
        assert (self.path / gpu_summary.SUMMARY_FILE).read_text() == done.stdout
        return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_all_good(folder: Folder) -> None:
    status, shown = folder.summary()
    assert status == 0 and shown.endswith("all good\n"), shown
    assert shown.count(" reached ") == len(gpu_targets.TARGETS)
    assert "(128, 64) apply: native 9.0, triton 12.0 (graph 8.0), reference 90.0" in shown
    assert "triton / native 0.89" in shown
    assert "[8192, 256] apply: ours 60.0, library 50.0; ours / library 1.20" in shown
    assert "16.7 and 20.0 TFLOP/s" in shown
    assert "not measured (order 128 would spill): eigensolvers: 1 x 128: triton" in shown
    assert "2 passed, 0 failed, 1 skipped" in shown and "skipped 1: needs two" in shown


def test_a_part_that_failed_or_was_not_run(folder: Folder) -> None:
    folder.parts["racecheck"]["state"] = "failed with status 9"
    folder.parts["tests"]["state"] = "running"
    del folder.parts["memcheck"]
    folder.parts["build"]["sources"] = "older"
    status, shown = folder.summary()
    assert status == 1
    assert "racecheck  NOT PASSED: failed with status 9; see x.log" in shown
    assert "tests      NOT PASSED: cut off while it ran" in shown
    assert "memcheck   NOT RUN" in shown
    assert "build      NOT PASSED: passed with other sources" in shown


def test_a_test_that_failed(folder: Folder) -> None:
    folder.tests = suite(failed=1)
    status, shown = folder.summary()
    assert status == 1 and "FAILED tests.gpu::test_a" in shown


def test_a_provider_that_is_missing(folder: Folder) -> None:
    del folder.measured["whole"]["(128, 64)"]["iternorm"]
    status, shown = folder.summary()
    assert status == 1 and "iternorm MISSING" in shown
    assert "NOT COMPARED (128, 64): no slower than IterNorm" in shown


def test_a_provider_that_failed(folder: Folder) -> None:
    folder.measured["stages"]["(128, 64) apply"]["triton"] = {"failed": "RuntimeError: no ptxas"}
    status, shown = folder.summary()
    assert status == 1 and "triton FAILED" in shown
    assert "stages: (128, 64) apply: triton FAILED: RuntimeError: no ptxas" in shown


def test_a_provider_that_is_not_there(folder: Folder) -> None:
    """On a GPU, a reason that is no property of the case is a fault."""
    folder.measured["whole"]["(512, 64)"]["fused"] = {"not_measured": "no _C_cuda"}
    status, shown = folder.summary()
    assert status == 1
    assert "not measured (no _C_cuda): whole: (512, 64): fused" in shown


@pytest.mark.parametrize("section", [name for name, *_ in gpu_summary.SECTIONS])
def test_cases_and_sections_that_are_missing(section: str, folder: Folder) -> None:
    del folder.measured[section]
    status, shown = folder.summary()
    assert status == 1 and "MISSING" in shown
    del folder.results["expected"][section]
    status, shown = folder.summary()
    assert status == 1 and ": MISSING" in shown


MISSES: dict[str, tuple[tuple[str, str, str], dict[str, float]]] = {
    "at most 200 us": (("whole", "(128, 64)", "fused"), timed(400, graph_us=201)),
    "at least 10 times": (("whole", "(128, 64)", "eager"), timed(1499)),
    "IterNorm": (("whole", "(128, 64)", "iternorm"), timed(399)),
    "8 groups": (("whole", "(512, 8 x 64)", "fused"), timed(500, graph_us=261)),
    "(256, 2048): at least 8": (("whole", "(256, 2048)", "fused"), timed(11_300)),
    "order 128": (("eigensolvers", "1 x 128", "native"), timed(701)),
    "ResNet-32 step": (("training step", "ResNet-32", "with"), timed(5251)),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_target_that_is_missed(name: str, folder: Folder) -> None:
    (section, case, who), entry = MISSES[name]
    folder.measured[section][case][who] = entry
    status, shown = folder.summary()
    missed = [line for line in shown.splitlines() if line.lstrip().startswith("MISSED")]
    assert status == 1 and len(missed) == 1 and name in missed[0], shown
    folder.dry = True  # the times of another machine are shown, not judged
    status, shown = folder.summary()
    assert status == 0 and shown.count("not judged") == len(gpu_targets.TARGETS), shown


def test_every_target_has_a_case_that_misses_it() -> None:
    assert len(MISSES) == len(gpu_targets.TARGETS)
    for name, ((section, case, who), entry) in MISSES.items():
        measured = copy.deepcopy(good_results()["measured"])
        assert all(v.held for v in gpu_targets.verdicts(measured))
        measured[section][case][who] = entry
        held = [v.text for v in gpu_targets.verdicts(measured) if not v.held]
        assert len(held) == 1 and name in held[0]


def test_an_empty_folder(tmp_path: Path) -> None:
    assert gpu_summary.main(tmp_path) == 1
    text = (tmp_path / gpu_summary.SUMMARY_FILE).read_text()
    assert text.count("NOT RUN") == len(gpu_summary.PARTS)
    assert "no test results" in text and "no benchmark results" in text


def test_broken_files(tmp_path: Path) -> None:
    for name in (gpu_summary.PARTS_FILE, gpu_summary.BENCHMARKS_FILE, gpu_summary.TESTS_FILE):
        (tmp_path / name).write_text("{")
    assert gpu_summary.main(tmp_path) == 1


def test_the_table_has_every_part_and_every_section_that_is_measured() -> None:
    from benchmarks import gpu_cases

    assert tuple(gpu_parts.PARTS) == gpu_summary.PARTS
    plan = gpu_cases.plan()
    assert [name for name, *_ in gpu_summary.SECTIONS] == list(
        dict.fromkeys(case.section for case in sorted(plan, key=lambda c: c.section == "stages"))
    )
    assert len({(case.section, case.name) for case in plan}) == len(plan)
    # What the targets ask for is measured, under the names that they use.
    everything = {
        section: {c.name: {n: timed(1.0) for n in c.runs} for c in plan if c.section == section}
        for section, *_ in gpu_summary.SECTIONS
    }
    assert all(v.held is not None for v in gpu_targets.verdicts(everything))
