"""The table of resources: how it is made and compared (.ci/run compiles the kernels)."""

from __future__ import annotations

import re
from pathlib import Path

import build_cuda
import kernel_resources
import pytest
from kernel_launches import Launch, short_name

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10fastwhiten4cuda11fill_kernelIfEEvlT_PS2_' for 'sm_90'
ptxas info    : Function properties for _ZN10fastwhiten4cuda11fill_kernelIfEEvlT_PS2_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 128 bytes smem
ptxas info    : Compiling entry function '_ZN10fastwhiten4cuda11fill_kernelIdEEvlT_PS2_' for 'sm_80'
ptxas info    : Used 12 registers, used 0 barriers
"""


def test_ptxas_is_parsed() -> None:
    assert kernel_resources.parse(PTXAS) == {
        ("fill_kernel<float>", "90"): (10, 128),
        ("fill_kernel<double>", "80"): (12, 0),
    }


def test_names_lose_their_parameters_but_not_their_template_arguments() -> None:
    name = "void fastwhiten::cuda::apply_kernel<(bool)1, __half, float>(fastwhiten::cuda::A<float>)"
    assert short_name(name) == "apply_kernel<(bool)1, __half, float>"


REGISTERS = {("a", "80"): 10, ("a", "90"): 12, ("b<1, 2>", "80"): 128, ("b<1, 2>", "90"): 126}
LAUNCHES = {
    ("a", "80"): Launch(64, 0),
    ("a", "90"): Launch(64, 0),
    ("b<1, 2>", "80"): Launch(256, 166912),
    ("b<1, 2>", "90"): Launch(256, 113 << 10),
}
TABLE = (
    "kernel (nvcc 13.0),registers sm_80,registers sm_90,"
    "threads,shared sm_80,shared sm_90,blocks sm_80,blocks sm_90\n"
    "a,10,12,64,0,0,32,32\n"
    '"b<1, 2>",128,126,256,166912,115712,1,2\n'
)


def test_the_table_is_written_and_read() -> None:
    assert kernel_resources.table("13.0", REGISTERS, LAUNCHES) == TABLE
    assert kernel_resources.read(TABLE) == ("13.0", REGISTERS)


def test_a_changed_row_is_told() -> None:
    assert kernel_resources.differences(TABLE, TABLE) == []
    changed = TABLE.replace("a,10,", "a,11,")
    row = "64,0,0,32,32"
    assert kernel_resources.differences(TABLE, changed) == [f"- a,10,12,{row}", f"+ a,11,12,{row}"]
    # Another nvcc may choose other registers, which change how many blocks there are.
    other = changed.replace("13.0", "12.8").replace("0,32,32", "0,31,30")
    assert kernel_resources.differences(TABLE, other) == []
    # What it has no part in is compared all the same: which kernels there are, and launches.
    assert kernel_resources.differences(TABLE, other + "c,9,9,32,0,0,1,1\n") == ["+ c,32,0,0"]
    launched = other.replace(",166912,", ",166896,")
    assert kernel_resources.differences(TABLE, launched) == [
        "- b<1, 2>,256,166912,115712",
        "+ b<1, 2>,256,166896,115712",
    ]


def test_a_kernel_without_a_launch_and_a_launch_without_a_kernel_are_named() -> None:
    more = {("c", "80"): Launch(32, 0), ("c", "90"): Launch(32, 0)}
    with pytest.raises(SystemExit, match=r"launched there, but neither compiled.*:\nc$"):
        kernel_resources.table("13.0", REGISTERS, LAUNCHES | more)
    with pytest.raises(SystemExit, match=r"compiled, but not launched by .*:\nb<1, 2>$"):
        kernel_resources.table("13.0", REGISTERS, {k: v for k, v in LAUNCHES.items() if "a" in k})


def test_a_block_that_no_multiprocessor_takes_is_told() -> None:
    # 1024 threads of 65 registers (72 are given): 73 728 of the 65 536
    launches = LAUNCHES | {("a", "80"): Launch(1024, 0)}
    assert kernel_resources.table("13.0", REGISTERS | {("a", "80"): 64}, launches)
    with pytest.raises(SystemExit, match=r"^a: no multiprocessor takes .* 65 registers"):
        kernel_resources.table("13.0", REGISTERS | {("a", "80"): 65}, launches)


def test_static_shared_memory_is_an_error() -> None:
    assert kernel_resources.registers_of({("a", "80"): (9, 0)}) == {("a", "80"): 9}
    with pytest.raises(SystemExit, match=r"FASTWHITEN_SHARED_MEMORY only, got \['fill_kernel"):
        kernel_resources.registers_of(kernel_resources.parse(PTXAS))


def test_launches_are_compared_and_written_without_nvcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "resources.csv"
    path.write_text(TABLE)
    monkeypatch.setattr(kernel_resources, "TABLE", path)
    launches = LAUNCHES | {("a", "90"): Launch(64, 16)}
    monkeypatch.setattr(kernel_resources.kernel_launches, "record", lambda: launches)
    with pytest.raises(SystemExit, match=r"(?s)run tools/kernel_resources.py.*\+ a,.*,64,0,16,"):
        kernel_resources.main(["--launches", "--check"])
    assert path.read_text() == TABLE
    kernel_resources.main(["--launches"])
    assert path.read_text() == TABLE.replace("a,10,12,64,0,0,", "a,10,12,64,0,16,")
    kernel_resources.main(["--launches", "--check"])
    assert capsys.readouterr().out == "4 kernels are launched as the table says\n"


def test_every_kernel_is_in_the_table() -> None:
    table = kernel_resources.TABLE.read_text()
    sources = "".join(p.read_text() for p in kernel_resources.KERNELS.glob("*.cuh"))
    kernels = set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources))
    assert len(kernels) > 15
    assert not [name for name in kernels if name not in table]


def test_a_strict_build_makes_spills_errors() -> None:
    flags = build_cuda.nvcc_flags(["8.0"], [], [], strict=True)
    assert flags[: len(build_cuda.STRICT)] == build_cuda.STRICT
    assert "-warn-spills" in flags[3] and flags[3].endswith("-Werror")
    assert "-Werror" not in build_cuda.nvcc_flags(["8.0"], [], [])
