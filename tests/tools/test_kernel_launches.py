"""What kernels are launched with: the table in the repository against the launchers."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
from pathlib import Path

import kernel_launches
import kernel_resources
import pytest
from kernel_launches import Launch

# Compiled once: the tests with the marker run in one process.
pytestmark = [pytest.mark.emulated, pytest.mark.xdist_group("kernel_launches")]

ARCHS = ["80", "90"]


@pytest.fixture(scope="module")
def recorded() -> dict[tuple[str, str], Launch]:
    """Return what the launchers of the repository launch.

    They do so where a block may have 99 KiB, too, as on compute capability 8.6, 8.9 and 12.0: a
    launch that asked for more would end it all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernel_launches.SHARED_LIMIT, "86", 99 << 10)
        found = kernel_launches.record()
    return {key: launch for key, launch in found.items() if key[1] in ARCHS}


def changed_sources(folder: Path, file: str, old: str, new: str) -> Path:
    """Copy the launchers to ``folder`` with one change; return the copy."""
    shutil.copytree(kernel_launches.ROOT / "csrc", folder / "csrc")
    path = folder / "csrc" / file
    text = path.read_text()
    assert text.count(old) == 1, (file, old)
    path.write_text(text.replace(old, new))
    return folder / "csrc"


def test_the_table_has_what_the_launchers_ask_for(
    recorded: dict[tuple[str, str], Launch],
) -> None:
    before = kernel_resources.TABLE.read_text()
    now = kernel_resources.table(*kernel_resources.read(before), recorded)
    assert kernel_resources.differences(before, now) == [], (
        "run tools/kernel_resources.py (or, without nvcc, with --launches)"
    )


def test_known_launches(recorded: dict[tuple[str, str], Launch]) -> None:
    # 64 rows of a matrix and of its eigenvectors, four numbers longer than a row each: more than
    # that, less than 1.1 times of it.
    two = 2 * 64 * 68 * 4
    assert two <= recorded["eigh_block_kernel<float, 64>", "80"].shared <= 1.1 * two
    # Of 128 the eigenvectors alone.
    one = 128 * 132 * 4
    assert one <= recorded["eigh_block_kernel<float, 128>", "80"].shared <= 1.1 * one
    # L of Cholesky, 128 x 129 numbers, is the largest part of it.
    assert 8 * 128 * 129 <= recorded["cholesky_kernel<double>", "90"].shared <= 1.02 * 8 * 128 * 129
    # One launch takes as many rows as fit: another (x and grad, 68 numbers each, and its weight)
    # would not.
    row = 4 * (2 * 68 + 1)
    for arch in ARCHS:
        unused = (
            kernel_launches.SHARED_LIMIT[arch]
            - recorded["small_backward_kernel<64, float, float>", arch].shared
        )
        assert 0 <= unused < row
    assert recorded["rows_kernel<4, ApplyArguments<float, float> >", "80"].threads == 256
    assert recorded["fill_kernel<int>", "80"] == Launch(256, 0)


def test_a_launcher_that_asks_for_more_is_told(
    tmp_path: Path, recorded: dict[tuple[str, str], Launch]
) -> None:
    launch = "device.launch(spectrum_kernel<T>, G, kSpectrumThreads, kSpectrumSharedBytes<T>"
    csrc = changed_sources(tmp_path, "cuda/factor.cuh", launch, f"{launch} + 16")
    now = recorded | kernel_launches.record(csrc, defines=("FLOAT_ONLY",))
    before = kernel_resources.TABLE.read_text()
    told = kernel_resources.differences(
        before, kernel_resources.table(*kernel_resources.read(before), now)
    )
    threads, old = recorded["spectrum_kernel<float>", "80"]
    assert len(told) == 2
    for line, shared in zip(told, (old, old + 16), strict=True):
        assert line[2:].startswith("spectrum_kernel<float>,")
        assert f",{threads},{shared},{shared}," in line


def test_a_launch_beyond_the_limit_is_told(tmp_path: Path) -> None:
    csrc = changed_sources(
        tmp_path, "cuda/small_backward.cuh", "bytes > device.shared_limit()", "false"
    )
    with pytest.raises(SystemExit, match=r"small_backward_kernel<.*a block may have 166912"):
        kernel_launches.record(csrc, defines=("FLOAT_ONLY",))


CALCULATOR = """
#include <cstdio>
#include <climits>
#include "cuda_occupancy.h"

int main() {
  int major, registers, threads, shared;
  while (std::scanf("%d %d %d %d", &major, &registers, &threads, &shared) == 4) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = (major == 8 ? 164 : 228) << 10;
    device.sharedMemPerBlockOptin = (major == 8 ? 163 : 227) << 10;
    device.reservedSharedMemPerBlock = 1 << 10;
    device.numSms = 100;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads,
                                                shared) != CUDA_OCC_SUCCESS) {
      return 1;
    }
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_blocks_are_those_of_nvidias_calculator(tmp_path: Path) -> None:
    # Its header comes with Triton, which the package needs.
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None
    include = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = tmp_path / "calculator"
    subprocess.run(
        ["g++", "-w", "-I", include, tmp_path / "calculator.cpp", "-o", program], check=True
    )
    cases = [
        (arch, registers, Launch(threads, shared))
        for arch, registers, threads, shared in itertools.product(
            ARCHS,
            [8, 16, 31, 32, 33, 40, 64, 65, 80, 104, 128, 168, 255],
            [1, 32, 64, 96, 128, 160, 256, 288, 512, 544, 1024],
            [0, 1, 896, 897, 1024, 17408, 65536, 112640, 115712, 166912, 232448],
        )
        if shared <= kernel_launches.SHARED_LIMIT[arch]
    ]
    given = "".join(
        f"{arch[0]} {r} {launch.threads} {launch.shared}\n" for arch, r, launch in cases
    )
    shown = subprocess.run([program], input=given, capture_output=True, text=True, check=True)
    expected = [int(line) for line in shown.stdout.split()]
    assert len(expected) == len(cases) and 0 in expected and 32 in expected
    assert [kernel_launches.blocks(*case) for case in cases] == expected
