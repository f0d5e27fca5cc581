"""What Nsight Compute counts is read and shown; where it cannot count, a line says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kernel_counters

# As it writes CSV: its messages first, a row for every metric of a kernel, numbers with commas.
HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"\n'
)
ROW = '"{id}","7","python3.12","host","{kernel}","1","7","(512, 1, 1)","(1, 1, 1)","0","9.0",'
ROW += '"Command line profiler metrics","{metric}","","{value}"\n'
FOUND = {
    kernel_counters.CYCLES: "1,953,504",
    kernel_counters.TIME: "1,050,250.5",
    kernel_counters.INSTRUCTIONS: "4,096",
    kernel_counters.GLOBAL.format("requests", "ld"): "100",
    kernel_counters.GLOBAL.format("sectors", "ld"): "3,200",
    kernel_counters.GLOBAL.format("requests", "st"): "0",
    kernel_counters.GLOBAL.format("sectors", "st"): "0",
    kernel_counters.CONFLICTS: "n/a",
}
LONGEST = "".join(ROW.format(id=0, kernel="eigh", metric=m, value=v) for m, v in FOUND.items())
OTHER = ROW.format(id=1, kernel="fill", metric=kernel_counters.CYCLES, value="2,000")
TEXT = f"==PROF== Connected to process 7\n==WARNING== one\n{HEAD}{LONGEST}{OTHER}"


@pytest.fixture
def profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return how to install a profiler that writes a text; what it is asked for is in a file."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["kernel_counters"])
    (tmp_path / "bin").mkdir()

    def install(text: str) -> Path:
        program, asked = tmp_path / "bin" / "ncu", tmp_path / "asked"
        (tmp_path / "text").write_text(text)
        log = 'while [ "$1" != --log-file ]; do shift; done'
        program.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n{log}\ncp {tmp_path}/text "$2"\n')
        program.chmod(0o755)
        monkeypatch.setattr(kernel_counters, "find", lambda: str(program))
        return asked

    return install


def test_kernels_and_their_counters_are_shown(profiler, monkeypatch, capsys) -> None:
    asked = profiler(TEXT)
    monkeypatch.setattr(kernel_counters.bench_eigh, "covariances", lambda *_: None)
    monkeypatch.setattr(kernel_counters.fastwhiten, "symmetric_eigh_sweeps", lambda *_, **__: 8)
    kernel_counters.main()
    shown = capsys.readouterr().out
    assert (
        "eigh 64: eigh (1, 1, 1) x (512, 1, 1): 1,953,504 cycles, 1,050.3 us, 4,096 instructions, "
        "issuing ? %, sectors a request 32.0 loaded, none stored, ? bank conflicts\n"
    ) in shown
    assert "eigh 64: fill (1, 1, 1) x (512, 1, 1): 2,000 cycles, ? us" in shown
    assert "eigh 64: 8 sweeps of 63 rounds: 3,876 cycles each\n" in shown  # of the longest kernel
    calls = asked.read_text().splitlines()
    assert len(calls) == len(kernel_counters.CASES) and "--clock-control none" in calls[0]
    assert calls[0].endswith("--case (128, 64)")


def test_what_may_not_be_counted_is_skipped_and_says_why(profiler, monkeypatch, capsys) -> None:
    profiler("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    with pytest.raises(SystemExit) as ended:
        kernel_counters.main()
    assert ended.value.code == kernel_counters.SKIPPED
    assert capsys.readouterr().out.startswith("nothing is counted: ==ERROR== ERR_NVGPUCTRPERM")
    monkeypatch.setattr(kernel_counters, "find", lambda: None)
    with pytest.raises(SystemExit):
        kernel_counters.main()
    assert capsys.readouterr().out == "nothing is counted: Nsight Compute (ncu) is not installed\n"


def test_a_profiler_that_fails_is_no_skip(profiler) -> None:
    profiler("==ERROR== unrecognised option '--metrics'\n")
    with pytest.raises(SystemExit, match=r"unrecognised option(.|\n)*counted no cycles"):
        kernel_counters.main()


@pytest.mark.parametrize("case", kernel_counters.CASES)
def test_every_case_runs(case: str) -> None:
    kernel_counters.perform(case, "cpu")
