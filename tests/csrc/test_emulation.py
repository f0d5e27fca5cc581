"""The emulator itself: what it computes, and that it finds every planted fault."""

import numpy as np
import pytest
import torch

from tests.csrc.emulation import ORDERS, EmulationError, run

pytestmark = pytest.mark.emulated

BOTH = pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)


@BOTH
@EVERY_ORDER
@pytest.mark.parametrize("block", [1, 2, 32, 64, 1024])
def test_block_sum(block: int, order: str, sanitize: bool) -> None:
    x = torch.randint(-100, 100, (3, block)).float()
    result = run("planted", which=0, x=x, grid=3, block=block, order=order, sanitize=sanitize)
    assert torch.equal(result["sum"], x.sum(1))


BLOCK_FAULTS = {
    "no barrier": (1, ("race on the shared word", "which nobody wrote")),
    "no barrier in the loop": (2, "race on the shared word"),
    "divergent barrier": (3, "deadlock: threads 0-31 wait at __syncthreads (planted.cpp:"),
    "early exit": (4, "thread 5 ended"),
    "unwritten": (5, "reads the shared word at byte 12, which nobody wrote"),
    "out of bounds": (6, "index 64 into a shared array of 64"),
    "short shared memory": (7, "does not fit the 256 bytes of the launch"),
    "misaligned load": (10, "a vector at byte 20, which is no multiple of 16"),
    "misaligned store": (11, "a vector at byte 24, which is no multiple of 16"),
}


def names(caught: pytest.ExceptionInfo[EmulationError], parts: str | tuple[str, ...]) -> bool:
    return any(part in str(caught.value) for part in ([parts] if isinstance(parts, str) else parts))


@EVERY_ORDER
@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_faults_of_a_block_are_found(fault: str, order: str) -> None:
    number, message = BLOCK_FAULTS[fault]
    with pytest.raises(EmulationError) as caught:
        run("planted", which=0, fault=number, x=torch.ones(64), order=order)
    assert names(caught, "planted::block_sum_kernel: block 0,0,0: ")
    assert names(caught, message), str(caught.value)


def test_the_sanitizer_sees_global_memory() -> None:
    with pytest.raises(EmulationError, match="heap-buffer-overflow"):
        run("planted", which=0, fault=8, x=torch.ones(64), sanitize=True)


def test_outputs_are_garbage_until_written() -> None:
    assert run("planted", which=0, fault=9, x=torch.ones(64))["sum"].isnan()


def expected_of_warps() -> torch.Tensor:
    rows = []
    for t in range(64):
        lane, first = t % 32, t // 32 * 32
        half = lane // 16 * 16
        rows.append(
            [
                first + (lane + 1) % 32,
                first + (lane ^ 5),
                t + 3 if lane + 3 < 32 else t,
                t - 3 if lane >= 3 else t,
                first + (lane ^ 8),
                sum(1 << i for i in range(0, 32, 3)),
                1,
                1,
                32 + 100 + 10000,
                t + 12 if lane - half + 12 < 16 else t,
                first + 31 - lane,
                t ^ 31,
                first + 31 if lane >= 16 else 2**32 - 16,  # unsigned, within a half
            ]
        )
    unsigned = torch.tensor(rows)
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).int()


@BOTH
@EVERY_ORDER
def test_warp_operations(order: str, sanitize: bool) -> None:
    result = run("planted", which=1, order=order, sanitize=sanitize)["out"].reshape(64, 13)
    assert torch.equal(result, expected_of_warps())


WARP_FAULTS = {
    "absent source": (1, "__shfl_sync at planted.cpp"),
    "not in its own mask": (2, "is not in its own mask"),
    "two sites": (3, "-15 wait at __shfl_xor_sync (planted.cpp:"),
    "no __syncwarp": (4, "race on the shared word"),
    "a shuffle for a fence": (5, "race on the shared word"),
    "half a __syncwarp": (6, "race on the shared word"),
}


@EVERY_ORDER
@pytest.mark.parametrize("fault", WARP_FAULTS)
def test_faults_of_a_warp_are_found(fault: str, order: str) -> None:
    number, message = WARP_FAULTS[fault]
    with pytest.raises(EmulationError) as caught:
        run("planted", which=1, fault=number, order=order)
    assert names(caught, message), str(caught.value)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@BOTH
@EVERY_ORDER
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors(dtype: torch.dtype, order: str, sanitize: bool) -> None:
    x = torch.randint(-100, 100, (32, 4)).to(dtype)
    copied = x.clone()
    copied[3] = 0
    result = run("planted", which=4, x=x, order=order, sanitize=sanitize)["out"].reshape(16, 2, 4)
    assert torch.equal(result.flip(1).reshape(32, 4), x + copied)


VECTOR_FAULTS = {
    "misaligned load": (1, "moves a vector of global memory at an address that is no multiple"),
    "misaligned store": (2, "moves a vector of global memory at an address that is no multiple"),
    "misaligned in shared memory": (3, "which is no multiple of 16"),
    "misaligned copy": (4, "moves a vector of global memory at an address that is no multiple"),
    "no wait": (5, "copies to and has not waited for"),
    "overwritten": (6, "copies to and has not waited for"),
    "another thread's": (7, ("has not waited for", "race on the shared word", "nobody wrote")),
    "copy out of bounds": (8, ("into a shared array of", "is no multiple of")),
}


@EVERY_ORDER
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", VECTOR_FAULTS)
def test_faults_of_vectors_are_found(fault: str, dtype: torch.dtype, order: str) -> None:
    number, message = VECTOR_FAULTS[fault]
    with pytest.raises(EmulationError) as caught:
        run("planted", which=4, fault=number, x=torch.ones(32, 4).to(dtype), order=order)
    assert names(caught, message), str(caught.value)


@BOTH
def test_conversions_round_as_torch_does(sanitize: bool) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    every_half = bits.view(torch.float16).double()
    every_bfloat16 = bits.view(torch.bfloat16).double()[::7]
    step = every_half.abs() * 2.0**-11
    around = torch.cat([every_half + step, every_half + step * (1 + 2.0**-30), every_half - step])
    x = torch.cat([every_half, every_bfloat16, around[::5], torch.randn(2000).double()])
    x = x[x.isfinite() | (torch.arange(len(x)) % 8 == 0)]
    result = run("planted", which=2, x=x, sanitize=sanitize)
    half, bfloat16 = result["h"].reshape(-1, 2), result["b"].reshape(-1, 2)
    assert same(half[:, 0], x.float().half())
    assert same(bfloat16[:, 0], x.float().bfloat16())
    with np.errstate(over="ignore"):
        assert same(half[:, 1], torch.from_numpy(x.numpy().astype("float16")))
    assert same(result["back"].reshape(-1, 2)[:, 0], half[:, 0].float())
    assert same(result["back"].reshape(-1, 2)[:, 1], bfloat16[:, 0].float())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
