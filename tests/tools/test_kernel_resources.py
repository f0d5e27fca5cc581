"""The table of registers: how it is read, and that no kernel is missing (.ci/run compiles)."""

from __future__ import annotations

import re

import build_cuda
import kernel_resources

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
    assert kernel_resources.short_name(name) == "apply_kernel<(bool)1, __half, float>"


def test_a_changed_row_is_told() -> None:
    before = "kernel (nvcc 13.0),sm_80\na,10\nb,20\n"
    assert kernel_resources.differences(before, before) == []
    changed = before.replace("b,20", "b,21")
    assert kernel_resources.differences(before, changed) == ["- b,20", "+ b,21"]
    # Another nvcc may choose other registers; a kernel that is missing is still one.
    other = changed.replace("13.0", "12.8")
    assert kernel_resources.differences(before, other) == []
    assert kernel_resources.differences(before, other + "c,9\n") == ["+ c"]


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
