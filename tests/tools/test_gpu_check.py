"""The program that checks on a GPU: limits, going on where it stopped, and that it runs at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_check
import gpu_parts
import gpu_summary
import pytest
from gpu_parts import Part, Setting, Step

from tests.helpers.processes import is_gone, started, until, with_parent

ROOT = Path(__file__).resolve().parents[2]
# What $OUT may hold where results are carried away by a machine's tools.
FILES = 8


def fake(name: str, code: str, limit: float = 500.0) -> Part:
    """A part that runs Python code, which takes a moment: no machine meets the limit."""
    command = [sys.executable, "-S", "-c", code]
    return Part(lambda setting, seconds: [Step(command)], limit, 0.0, 1.0, f"{name}.log")


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program with parts that do what is given; the others pass."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu_check, "DRY_FACTOR", 1.0)

    def run(*arguments: str, **codes: str | Part) -> int:
        for name in gpu_parts.PARTS:
            code = codes.get(name, "pass")
            part = code if isinstance(code, Part) else fake(name, code)
            monkeypatch.setitem(gpu_check.PARTS, name, part)
        return gpu_check.main(["--dry-run", *arguments])

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def states(folder: Path) -> dict[str, str]:
    found = json.loads((folder / gpu_summary.PARTS_FILE).read_text())["parts"]
    return {name: entry["state"] for name, entry in found.items()}


def test_a_failed_part_is_done_again_and_a_passed_one_is_not(check, tmp_path, capsys) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    failing = f"{count}; print('went' + ' wrong'); raise SystemExit(3)"
    assert check(build=count, racecheck=failing) == 1
    assert states(tmp_path)["racecheck"] == "failed with status 3"
    assert states(tmp_path)["synccheck"] == "passed", "a failure keeps no later part from running"
    shown = capsys.readouterr().out
    assert "\nwent wrong\n" in shown, "the end of its log"
    assert "racecheck  NOT PASSED: failed with status 3" in shown
    check(build=count, racecheck=count)
    shown = capsys.readouterr().out
    assert "build: done before" in shown and "racecheck: passed" in shown
    assert "racecheck: done before" not in shown
    assert (tmp_path / "count").read_text() == "xxx", "build once, racecheck twice"


def test_other_sources_do_it_again(check, tmp_path, capsys, monkeypatch) -> None:
    check("build")
    monkeypatch.setattr(gpu_check, "fingerprint", lambda: "other")
    check("build")
    assert "done before" not in capsys.readouterr().out


# Waits for ever with a child that does; the file has the child's number.
HANGING = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
with open({file!r} + ".new", "w") as file:
    file.write(str(child.pid))
os.replace({file!r} + ".new", {file!r})
signal.pause()
"""


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_with_its_children(check, tmp_path, monkeypatch) -> None:
    child = tmp_path / "child"

    class Started(subprocess.Popen):
        """A process whose limit begins when its child is there, however busy the machine is."""

        def wait(self, timeout: float | None = None) -> int:
            if "HANGING" in str(self.args) and self.poll() is None:
                until(child.exists, self)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Started)
    part = fake("", "# HANGING" + HANGING.format(file=str(child)), limit=6.0)
    assert check("benchmarks", "synccheck", benchmarks=part) == 1
    assert states(tmp_path) == {"benchmarks": "stopped after 6 s", "synccheck": "passed"}
    until(lambda: is_gone(int(child.read_text())))


def test_without_a_build_nothing_is_tried(check, tmp_path) -> None:
    assert check(build="raise SystemExit(1)") == 1
    assert list(states(tmp_path)) == ["build"]
    assert (tmp_path / gpu_summary.SUMMARY_FILE).read_text().count("NOT RUN") == 5


def test_what_there_is_no_time_for_is_said(check, tmp_path) -> None:
    assert check("--seconds", "1", "build") == 1
    assert states(tmp_path)["build"] == "not begun: no time left"


def test_an_unknown_part_is_named(check, capsys) -> None:
    with pytest.raises(SystemExit):
        check("bild")
    assert "expected parts among build, tests" in capsys.readouterr().err


def test_a_signal_ends_it_with_a_summary(tmp_path) -> None:
    child = tmp_path / "child"
    code = (
        "import sys; sys.path.insert(0, 'tools'); import gpu_check as g\n"
        "from gpu_parts import Part, Step\n"
        f"command = [sys.executable, '-S', '-c', {HANGING.format(file=str(child))!r}]\n"
        "g.PARTS['build'] = Part(lambda s, t: [Step(command)], 3000, 0, 1, 'build.log')\n"
        "sys.exit(g.main(['--dry-run']))\n"
    )
    environment = {**os.environ, "OUT": str(tmp_path)}
    with started([sys.executable, "-c", code], cwd=ROOT, env=environment) as process:
        until(child.exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    assert states(tmp_path) == {"build": "interrupted by SIGTERM"}
    text = (tmp_path / gpu_summary.SUMMARY_FILE).read_text()
    assert "build      NOT PASSED: interrupted by SIGTERM" in text
    until(lambda: is_gone(int(child.read_text())))


def test_the_limits_leave_time_for_every_part() -> None:
    """Even if all hang, the summary is written before ten minutes are over."""
    names, left = list(gpu_parts.PARTS), gpu_check.SECONDS
    for at, name in enumerate(names):
        allowed = gpu_check.allowance(names, at, left)
        assert allowed >= gpu_parts.PARTS[name].least, name
        assert allowed >= 20
        left -= allowed
    assert left >= 0
    # Two signals a part, if it obeys neither: only who hangs in the kernel does so.
    assert sum(part.usual for part in gpu_parts.PARTS.values()) < gpu_check.SECONDS


def commands(name: str, tmp_path: Path, seconds: float = 100.0) -> list[Step]:
    return gpu_parts.PARTS[name].steps(Setting(tmp_path, "abc"), seconds)


def test_the_build_needs_no_network_where_the_tools_are(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(gpu_parts, "gpu_architecture", lambda: "9.0")
    steps = commands("build", tmp_path)
    install = [s for s in steps if "install" in s.command]
    assert len(install) == 1 and "--no-build-isolation" in install[0].command
    assert install[0].environment == {"FASTWHITEN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    monkeypatch.setattr(gpu_parts, "missing_tools", lambda: ["ninja"])
    first = next(s for s in commands("build", tmp_path) if "install" in s.command)
    assert first.command[-1] == "ninja"


def test_sanitizers_check_our_kernels(tmp_path) -> None:
    names = gpu_parts.triton_kernels()
    assert "statistics_kernel" in names and len(names) > 10
    native, triton = commands("memcheck", tmp_path)
    assert native.command[-1] == "native" and "kns=fastwhiten" in native.command
    assert triton.command[-1] == "triton" and "kns=statistics_kernel" in triton.command
    assert native.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    (race,) = commands("racecheck", tmp_path)
    assert race.command[1:3] == ["--tool", "racecheck"] and "--error-exitcode" in race.command


def test_a_sanitizer_that_is_not_installed_is_named(check, tmp_path, monkeypatch) -> None:
    missing = Step(["compute-sanitizer-that-is-not-there"])
    part = Part(lambda setting, seconds: [missing], 20.0, 0.0, 1.0, "sanitizer.log")
    assert check("memcheck", memcheck=part) == 1
    assert states(tmp_path)["memcheck"] == "failed with status 127"
    assert "cannot be started" in (tmp_path / "sanitizer.log").read_text()


@pytest.mark.full
def test_a_quick_run_from_build_to_summary(tmp_path) -> None:
    """All parts without a GPU; a second run does nothing again and says the same."""
    command = ["tools/gpu_check.sh", "--quick"]
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    shown = []
    for _ in range(2):
        done = subprocess.run(
            with_parent(command), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        shown.append(done.stdout)
    assert all(f"{name}: passed" in shown[0] for name in gpu_parts.PARTS)
    assert all(f"{name}: done before" in shown[1] for name in gpu_parts.PARTS)
    assert shown[1].endswith((tmp_path / gpu_summary.SUMMARY_FILE).read_text())
    assert len(list(tmp_path.iterdir())) <= FILES, sorted(tmp_path.iterdir())
