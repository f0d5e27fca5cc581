"""Which backend serves a call, and what is said when it cannot."""

import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastwhiten
from fastwhiten import backends
from fastwhiten.backends import fakes, native, reference, triton

CPU, META = torch.device("cpu"), torch.device("meta")
STAGES = (
    "statistics",
    "eigh",
    "factor",
    "apply",
    "backward_reduce",
    "backward_matrix",
    "backward_apply",
    "whiten_forward",
    "whiten_backward",
    "sample_statistics",
    "sample_apply",
    "sample_backward",
)


class Recorder(TorchDispatchMode):
    """Names of the fastwhiten ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastwhiten":
            self.ops.add(func._schema.name.removeprefix("fastwhiten::"))
        return func(*args, **(kwargs or {}))


def ops_of(backend: str, rows: int) -> set[str]:
    x = torch.randn(rows, 6, requires_grad=True)
    with Recorder() as recorder:
        fastwhiten.whiten(x, backend=backend).sum().backward()
    return recorder.ops


def test_native_is_built() -> None:
    assert native.import_error is None, native.import_error


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_native_runs_the_compiled_stages(backend: str) -> None:
    assert ops_of(backend, 20) == {"whiten_forward", "whiten_backward"}
    assert ops_of(backend, 3) == {"sample_statistics", "eigh", "sample_apply", "sample_backward"}


def test_reference_runs_none_of_them() -> None:
    assert ops_of("reference", 20) == ops_of("reference", 3) == set()


def test_backends_have_the_same_stages() -> None:
    for stage in STAGES:
        for backend in backends.BACKENDS.values():
            assert callable(getattr(backend, stage))
    assert set(fakes.FAKES) == set(STAGES)


def test_choose() -> None:
    assert backends.choose("reference", CPU) == backends.choose("reference", META) == "reference"
    assert backends.choose("native", CPU) == backends.choose("auto", CPU) == "native"
    assert backends.choose("auto", META) == "reference"
    assert backends.get("native") is native and backends.get("reference") is reference


def test_available_and_explain_with_the_extension() -> None:
    assert backends.available() == {
        "native": None,
        "reference": None,
        "cuda": "this version has no CUDA kernels",
        "triton": None,
    }
    table = backends.explain()
    assert [(case, name) for case, name, _ in table] == [
        ("CPU tensors, every dtype and shape", "native"),
        ("CUDA tensors, NVIDIA GPU of compute capability 8.0 or later", "triton"),
        ("other devices and GPUs", "reference"),
    ]
    assert all(reason for _, _, reason in table)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told; auto says once that it takes the slower one; native refuses."""
    monkeypatch.setattr(native, "import_error", "no file _C.abi3.so")
    backends._warn_once.cache_clear()
    message = (
        "the compiled extension fastwhiten._C cannot be loaded (no file _C.abi3.so); "
        "run `pip install .` in the source folder, or `pip install -e .` to import from it"
    )
    assert backends.available()["native"] == message
    assert backends.explain()[0][1:] == ("reference", message)
    with pytest.raises(RuntimeError, match=f'^backend="native": {re.escape(message)}$'):
        fastwhiten.whiten(torch.randn(8, 3), backend="native")
    expected = f'backend="auto" takes the slower reference backend: {message}'
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(expected)}$"):
        y = fastwhiten.whiten(torch.eye(4), backend="auto")
    assert torch.equal(y, fastwhiten.whiten(torch.eye(4), backend="reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastwhiten.whiten(torch.eye(4), backend="auto")
    backends._warn_once.cache_clear()


def test_native_takes_no_part_in_other_devices() -> None:
    with pytest.raises(ValueError, match=r'^backend="native" serves CPU tensors, got a tensor on'):
        backends.choose("native", META)
    assert fastwhiten.whiten(torch.empty(8, 3, device="meta")).shape == (8, 3)


def test_an_extension_of_other_sources_is_noticed() -> None:
    assert native.missing_ops(["statistics", "no_such_stage"]) == ["no_such_stage"]


@pytest.mark.interpret
def test_triton_runs_its_own_operators() -> None:
    class TritonRecorder(Recorder):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "fastwhiten_triton":
                self.ops.add(func._schema.name.removeprefix("fastwhiten_triton::"))
            return super().__torch_dispatch__(func, types, args, kwargs)

    x = torch.randn(20, 6, requires_grad=True)
    with TritonRecorder() as recorder:
        fastwhiten.whiten(x, backend="triton").sum().backward()
    assert recorder.ops == {"whiten_forward", "whiten_backward"}


def test_triton_wants_cuda_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = r'^backend="triton": it serves CUDA tensors, got a tensor on cpu; for tests, TRITON'
    with pytest.raises(ValueError, match=message):
        fastwhiten.whiten(torch.randn(8, 3), backend="triton")
    with pytest.raises(ValueError, match=r'^backend="triton": it serves NVIDIA GPUs, got a tensor'):
        backends.choose("triton", META)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told, the table changes, and only who asks for it gets an exception."""
    reason = "triton is not installed; run `pip install triton` (Linux on x86-64 or aarch64)"
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    triton.import_error.cache_clear()
    try:
        assert backends.available()["triton"] == reason
        assert backends.explain()[1][1:] == ("reference", reason)
        with pytest.raises(RuntimeError, match=f'^backend="triton": {re.escape(reason)}$'):
            fastwhiten.whiten(torch.randn(8, 3), backend="triton")
    finally:
        triton.import_error.cache_clear()


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "triton"), ((8, 0), "triton"), ((7, 5), "reference")]
)
def test_auto_on_a_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU answers is replaced here: choosing a backend touches no device."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 0)
    assert backends.choose("auto", device) == expected
    if expected == "reference":
        with pytest.raises(ValueError, match=r"needs compute capability 8\.0 or later, cuda:0 has"):
            backends.choose("triton", device)


def test_importing_fastwhiten_does_not_import_triton() -> None:
    code = "import sys, fastwhiten; print('triton' in sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
