"""The table of the kernels' modelled times: how it is made and compared, and what is launched."""

from __future__ import annotations

import csv
import io

import kernel_model
import pytest
from kernel_model import SIZES, TABLE, Launch

from tests.csrc.compiled import LIBRARY, Report

NUMBERS = {
    **{"blocks": 264.0, "threads": 256.0, "shared": 1024.0, "resident": 2.0, "cycles": 17550.0},
    **{"us": 10.0, "launch_us": 1.5, "floor_bytes_us": 2.0, "floor_arithmetic_us": 3.0},
    **dict.fromkeys((f"{unit}_share" for unit in ("imad", "fp64", "special", "memory")), 0.1),
    **{"issue_share": 0.5, "fma_share": 0.4, "alu_share": 0.3, "shared_share": 0.7},
    **{"waited_stall": 30.0, "waited_long": 60.0, "waited_barrier": 10.0},
}
ROUNDS = [("outer.cuh:1", 3, 5000), ("a.cuh:7", 60, 200), ("b.cuh:9", 400, 2)]
KERNEL = Report("_ZN10fastwhiten4cuda11fill_kernelIfEEvlT_PS2_", NUMBERS, ROUNDS)
ROW = "264,256,1024,2,10.0,3.0,shared,70%,a.cuh:7: 60 x 200"
HEAD = "scene,step,kernel (nvcc 13.0),blocks,threads,shared,resident,us,floor us,bound by,of,rounds"


def test_a_table() -> None:
    found = [
        Launch("(2, 3)", "forward", KERNEL),
        Launch("(2, 3)", "forward", Report(LIBRARY)),
        Launch("(2, 3)", "backward", KERNEL),
    ]
    assert kernel_model.table(found, "13.0").splitlines() == [
        HEAD,
        f'"(2, 3)",forward,fill_kernel<float>,{ROW}',
        f'"(2, 3)",forward,{LIBRARY},,,,,,,,,',
        f'"(2, 3)",forward,{kernel_model.TOTAL},2,,,,11.5,,,,',
        f'"(2, 3)",backward,fill_kernel<float>,{ROW}',
        f'"(2, 3)",backward,{kernel_model.TOTAL},1,,,,11.5,,,,',
    ]


def test_what_limits_a_launch() -> None:
    assert kernel_model.bound(KERNEL) == ("shared", 0.7)
    idle = Report("k", {**NUMBERS, "shared_share": 0.5})
    assert kernel_model.bound(idle) == ("latency: long", 0.6)


def test_changes_are_told() -> None:
    table = f"{HEAD}\ns,eigh,k,{ROW}\n"
    assert kernel_model.differences(table, table.replace(",10.0,", ",10.1,")) == []
    slower = table.replace(",10.0,", ",10.4,")
    told = [f"- s,eigh,k,{ROW}", "+ s,eigh,k," + ROW.replace("10.0", "10.4")]
    assert kernel_model.differences(table, slower) == told
    # Another nvcc may make a kernel slower, but launches no other.
    assert kernel_model.differences(table, slower.replace("13.0", "13.1")) == []
    more = table.replace("13.0", "13.1").replace(",264,", ",265,")
    assert len(kernel_model.differences(table, more)) == 2
    assert kernel_model.differences(table, f"{HEAD}\n") == [f"- s,eigh,k,{ROW}"]


@pytest.mark.emulated
@pytest.mark.slow
def test_the_table_has_what_the_scenes_launch() -> None:
    rows = [
        row for row in csv.reader(io.StringIO(TABLE.read_text())) if row[2] != kernel_model.TOTAL
    ]
    launches = [
        launch
        for name in kernel_model.scenes()
        for launch in kernel_model.launches(name, only_sizes=True)
    ]
    kernels = kernel_model.demangle([launch.report.kernel for launch in launches])
    now = [
        [launch.scene, launch.step, kernel]
        + [f"{launch.report.numbers[size]:.0f}" if launch.report.numbers else "" for size in SIZES]
        for launch, kernel in zip(launches, kernels, strict=True)
    ]
    assert now == [row[: 3 + len(SIZES)] for row in rows[1:]], "run tools/kernel_model.py"
