"""`make gpu`: what fails or is missing fails it, limits hold, and the targets are judged."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gpu
import pytest
import torch

from benchmarks import bench_products, bench_targets, bench_whiten, gpu_timing, report
from tests.helpers.processes import is_gone, started, until, with_parent

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for names in gpu.GROUPS.values() for name in names]
# Waits for ever with a child that does; the file has the child's number.
HANGING = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
with open({file!r} + ".new", "w") as file:
    file.write(str(child.pid))
os.replace({file!r} + ".new", {file!r})
signal.pause()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run the program with parts that do what is given, and nothing by default."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)

    def run(*arguments: str, limit: float = 500.0, **codes: str) -> tuple[int, str]:
        commands = {n: [sys.executable, "-S", "-c", codes.get(n, "pass")] for n in NAMES}
        fake = {name: (limit, command) for name, command in commands.items()}
        monkeypatch.setattr(gpu, "parts", lambda dry, folder: fake)
        status = gpu.main(["--dry-run", *arguments])
        shown = capsys.readouterr().out
        assert shown == (tmp_path / "dry-run" / "summary.txt").read_text()
        (tmp_path / "dry-run" / "summary.txt").unlink()
        return status, shown

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_part_that_fails_fails_the_command_and_keeps_no_other_from_running(run) -> None:
    status, shown = run(native="print('went' + ' wrong'); raise SystemExit(3)")
    assert status == 1 and "\nwent wrong\n-- native: failed with status 3" in shown
    assert "triton          passed" in shown and shown.endswith("make gpu PART='native'\n")
    status, shown = run("native", "triton")
    assert status == 0 and shown.count("-- ") == 3, "and the build"
    status, shown = run(counters="print('no ncu'); raise SystemExit(77)")
    assert status == 0 and "\nno ncu\n-- counters: skipped" in shown


def test_without_a_build_or_time_nothing_is_tried(run, monkeypatch) -> None:
    status, shown = run(build="raise SystemExit(1)")
    assert status == 1 and shown.count("not begun") == len(NAMES) - 1
    status, shown = run("native", "--seconds", "0.5")
    assert status == 1 and "build           not begun: no time left" in shown
    with pytest.raises(SystemExit):
        run("bild")


def test_ten_minutes_by_name(run) -> None:
    _, shown = run("second")
    begun = [line.split()[1] for line in shown.splitlines() if line.startswith("-- ")]
    assert begun == ["build:", *(f"{name}:" for name in gpu.GROUPS["second"])]


def test_results_are_kept_and_copied_after_every_part(run, tmp_path, monkeypatch) -> None:
    """Into a folder that may be emptied in between: what was measured before is among them."""
    copies, new = tmp_path / "copies", str(tmp_path / "dry-run" / "new.json")
    monkeypatch.setenv("FASTWHITEN_RESULTS", str(copies))

    def measured(name: str, mean: int, **machine: int) -> str:
        found = {"machine_info": machine, "benchmarks": [{"fullname": name, "mean": mean}]}
        return f"open({new!r}, 'w').write({json.dumps(found)!r})"

    # A part sees what those before it have left; without results pytest-benchmark writes no text.
    look = f"import os; print(sorted(os.listdir({str(copies)!r}))); open({new!r}, 'w')"
    _, shown = run("stages", "whitening", stages=measured("x", 1, a=1), whitening=look)
    assert "['benchmarks.json', 'log.txt', 'summary.txt']" in shown
    for file in copies.iterdir():
        file.unlink()
    run("products", "stages", products=measured("y", 2, b=2), stages=measured("x", 3))
    found = json.loads((copies / "benchmarks.json").read_text())
    assert found["machine_info"] == {"a": 1, "b": 2}
    assert {bench["fullname"]: bench["mean"] for bench in found["benchmarks"]} == {"x": 3, "y": 2}
    assert len([*copies.iterdir()]) <= 4


def test_what_is_not_installed_is_said_at_once(run, monkeypatch, capsys) -> None:
    real = importlib.util.find_spec
    absent = ["xdist"]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else real(name)
    )
    status, shown = run("native")
    assert status == 0 and "\npytest-xdist is not installed: the tests run in one process" in shown
    absent += ["pytest_benchmark"]
    with pytest.raises(SystemExit):
        run("native")
    assert "has no pytest-benchmark" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_with_its_children(run, tmp_path, monkeypatch) -> None:
    child = tmp_path / "child"

    class Started(subprocess.Popen):
        """A process whose limit begins when its child is there, however busy the machine is."""

        def wait(self, timeout: float | None = None) -> int:
            if "signal.pause" in str(self.args) and self.poll() is None:
                until(child.exists, self)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Started)
    status, shown = run("native", native=HANGING.format(file=str(child)), limit=6.0)
    assert status == 1 and "native          stopped after 6 s" in shown
    until(lambda: is_gone(int(child.read_text())))


def test_a_signal_ends_it_with_a_summary(tmp_path) -> None:
    child = tmp_path / "child"
    code = (
        "import sys; sys.path.insert(0, 'tools'); import gpu; from pathlib import Path\n"
        f"command = [sys.executable, '-S', '-c', {HANGING.format(file=str(child))!r}]\n"
        f"gpu.RESULTS = Path({str(tmp_path)!r})\n"
        "gpu.parts = lambda *_: {'build': (999, command)}\n"
        "sys.exit(gpu.main(['--dry-run']))\n"
    )
    with started([sys.executable, "-c", code], cwd=ROOT) as process:
        until(child.exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    assert "build           interrupted" in (tmp_path / "dry-run" / "summary.txt").read_text()
    until(lambda: is_gone(int(child.read_text())))


def test_the_parts_of_a_gpu(tmp_path) -> None:
    parts = gpu.parts(False, tmp_path)
    assert list(parts) == NAMES, "the most valuable first"
    for names in gpu.GROUPS.values():  # the last part of all takes what is left
        assert sum(parts[name][0] for name in names if name != "whitening") <= gpu.SECONDS
    command = parts["triton-memcheck"][1]
    assert "kns=fastwhiten" in command and "kns=statistics_kernel" in command
    assert command[1:3] == ["--tool", "memcheck"] and "--error-exitcode" in command
    assert "interpret" in command and "not interpret" in parts["memcheck"][1]
    workers = parts["native"][1].index("-n") + 1
    assert parts["native"][1][workers] == str(len(os.sched_getaffinity(0)))


@pytest.mark.slow
def test_the_tests_for_a_gpu_find_their_fixtures() -> None:
    """They take over those of tests/, which move; only a GPU, or a dry run, collects them."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--setup-plan", "-q"]
    environment = {**os.environ, "FASTWHITEN_TEST_DEVICE": "cpu"}
    done = subprocess.run(
        with_parent(command), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.full
def test_a_try_of_every_part_on_the_cpu() -> None:
    # Where tests are distributed, pytest-benchmark in a child would switch itself off.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["VIRTUAL_ENV"] = sys.prefix
    command = with_parent(["make", "gpu", "DRY_RUN=1"])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert done.stdout.count(": not judged, ") == len(bench_targets.TARGETS)
    endings = {name: "skipped" if name == "counters" else "passed" for name in NAMES}
    assert all(f"\n{name:<16}{how}" in done.stdout for name, how in endings.items())
    assert len(list((gpu.RESULTS / "dry-run").iterdir())) <= 4


# --- targets ----------------------------------------------------------------------------------

# By target: microseconds of a run each, as a graph where there is a second number, that just reach
# it, and those of the first one that miss it.
FIGURES = {
    "at most 200 us": ([(900, 200)], (900, 201)),
    "at least 10 times": ([(4000,), (600, 400)], (3999,)),
    "IterNorm": ([(900, 150), (900, 800)], (901, 150)),
    "8 groups": ([(500, 260), (450, 200)], (500, 261)),
    "(256, 2048)": ([(80_000,), (10_000,)], (79_900,)),
    "order 128": ([(700,), (700,)], (701,)),
    "ResNet-32": ([(5250,), (5000,)], (5251,)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_target_is_reached_or_missed(name: str) -> None:
    (target,) = (target for target in bench_targets.TARGETS if name in target.text)
    assert len(FIGURES) == len(bench_targets.TARGETS)
    reached, missed = FIGURES[name]
    for first, held in ((reached[0], True), (missed, False)):
        ways = [dict(zip(("eager_us", "graph_us"), t, strict=False)) for t in (first, *reached[1:])]
        assert target.held(target.figure(dict(enumerate(ways)))) == held  # type: ignore[arg-type]


def test_a_target_that_is_missed_or_not_measured_is_named(monkeypatch) -> None:
    class Benchmark:
        extra_info: ClassVar[dict[str, Any]] = {}

        def pedantic(self, function, **_):
            return {"fused": {"eager_us": 900.0, "graph_us": 201.0}}

    def absent(device: str):
        raise AssertionError("fastwhiten_cuda is not installed")

    monkeypatch.setattr(bench_targets, "OUTCOMES", {})
    headline, faster, *others = bench_targets.TARGETS
    for target, why in ((headline, "at most 200 us: 201"), (faster, "not installed")):
        target = target._replace(runs=absent if target is faster else lambda device: {})
        with pytest.raises(AssertionError, match=why):
            bench_targets.bench_target(Benchmark(), target, "cuda")
    lines = bench_targets.lines()
    assert lines[0].endswith("200 us: MISSED, 201 us") and Benchmark.extra_info["figure"] == 201
    assert [line.endswith(": NOT MEASURED") for line in lines[1:]] == [True] * (1 + len(others))


def test_a_wrong_gradient_is_no_result() -> None:
    scene = next(scene for scene in bench_whiten.SCENES if scene.name == "(128, 64)")
    x = scene.input().requires_grad_()
    y = bench_whiten.make("fused", scene, "cpu")(x)
    (dx,) = torch.autograd.grad(y, x, bench_whiten.gradient(scene, "cpu"))
    bench_whiten.verify("fused", scene, y, dx)
    with pytest.raises(AssertionError, match="grad_error"):
        bench_whiten.verify("fused", scene, y, 1.01 * dx)


def test_a_graph_is_timed_when_all_of_it_is_queued(monkeypatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.name = "begin" if order.count("event") % 2 == 0 else "end"
            order.append("event")

        def record(self) -> None:
            order.append(self.name)

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 0.25

    class Flush:
        def zero_(self) -> None:
            order.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("sleep"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    asked = {
        "graph_us": "sleep flush begin run end wait",
        "eager_us": "flush wait begin run end wait",
    }
    for way, expected in asked.items():
        order.clear()
        assert gpu_timing.TIMED[way](lambda: order.append("run"), Flush()) == 250.0
        assert " ".join(order) == f"event event {expected}"


def test_runs_take_turns_and_the_devices_times_are_shown() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = gpu_timing.measure(runs, "cpu", rounds=2)
    assert order == list("ababab") and times["a"]["eager_us"] > 0
    info = {"eager_us": 60.0, "graph_us": 50.0, "operations": 1e9}
    bench = {"name": "bench_x[apply-native]", "group": "apply", "extra_info": info}
    shown = "apply: apply-native 60.0 (graph 50.0) = 20.0 TFLOP/s"
    assert report.device_table([bench]) == shown


@pytest.mark.parametrize("stage", bench_products.STAGES)
@pytest.mark.parametrize("shape", [(70, 9), (5, 8, 12)])
def test_the_librarys_products_are_the_stages(shape, stage) -> None:
    arguments = bench_products.calls(torch.randn(shape))[stage]
    truth = bench_products.LIBRARY[stage](*(t.double() for t in arguments))
    library = bench_products.LIBRARY[stage](*arguments)
    for found in (bench_products.native(stage, arguments)(), library):
        assert bench_products.error_of(found, truth) < bench_products.TOLERANCE
