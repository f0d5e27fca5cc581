"""Which backend serves a call, and what is said when it cannot."""

import inspect
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastwhiten
from fastwhiten import backends
from fastwhiten.backends import cuda_module, extension, native, reference, stages, triton

CPU, META = torch.device("cpu"), torch.device("meta")
STAGES = (
    "statistics",
    "intensity",
    "eigh",
    "eigh_sweeps",
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
    assert set(stages.STAGES) == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_the_table_is_what_the_specification_and_the_compiled_operators_take(name: str) -> None:
    parameters = inspect.signature(getattr(reference, name)).parameters.values()
    stage = stages.STAGES[name]
    assert [(p.name, p.default is None) for p in parameters] == [
        (v.name, v.default) for v in stage.arguments
    ]
    schema = getattr(torch.ops.fastwhiten, name).default._schema
    assert str(schema).removeprefix(f"fastwhiten::{name}") == stages.schema(name).replace(
        "SymInt", "int"
    )


def test_the_documentation_names_every_backend() -> None:
    """Every other docstring refers to that of whiten."""
    text = fastwhiten.whiten.__doc__ or ""
    said = re.search(r"\n +backend: (.*?)\n +statistics_dtype:", text, re.DOTALL)
    assert said is not None
    assert set(re.findall(r'``"(\w+)"``', said[1])) == {"auto", *backends.BACKENDS}


def test_choose() -> None:
    assert backends.choose("reference", CPU) == backends.choose("reference", META) == "reference"
    assert backends.choose("native", CPU) == backends.choose("auto", CPU) == "native"
    assert backends.choose("auto", META) == "reference"
    assert backends.get("native") is native and backends.get("reference") is reference


def test_available_and_explain_with_the_extension() -> None:
    reason = cuda_module.import_error
    assert torch.version.cuda is not None or reason == "this torch is a CPU build"
    assert backends.available() == {
        "native": None,
        "reference": None,
        "cuda": reason,
        "triton": None,
    }
    gpus = "native" if reason is None else "triton" if torch.version.cuda else "reference"
    table = backends.explain()
    assert [(case, name) for case, name, _ in table] == [
        ("CPU tensors, every dtype and shape", "native"),
        ("CUDA tensors", gpus),
        ("other devices", "reference"),
    ]
    assert all(reason for _, _, reason in table)


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_without_the_extension(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told and nothing runs, unless somebody asks for plain PyTorch."""
    monkeypatch.setattr(native, "import_error", "fastwhiten_cpu is not installed; do this")
    assert backends.available()["native"] == "fastwhiten_cpu is not installed; do this"
    assert backends.explain()[0][1:] == ("none", "fastwhiten_cpu is not installed; do this")
    message = f'^backend="{backend}": fastwhiten_cpu is not installed; do this; backend="reference"'
    with pytest.raises(RuntimeError, match=message):
        fastwhiten.whiten(torch.eye(4), backend=backend)
    assert fastwhiten.whiten(torch.eye(4), backend="reference").isfinite().all()
    monkeypatch.setattr(backends, "DEFAULT", "reference")
    assert backends.explain()[0][1] == "reference"
    if backend == "auto":
        fastwhiten.whiten(torch.eye(4))
    else:
        with pytest.raises(RuntimeError, match=message):
            fastwhiten.whiten(torch.eye(4), backend=backend)


def test_the_environment_names_the_default() -> None:
    def run(value: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import torch, fastwhiten.backends as b; print(b.choose('auto', torch.device('cpu')))"
        )
        environment = {**os.environ, "FASTWHITEN_BACKEND": value}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    assert run("reference").stdout == "reference\n"
    assert run("auto").stdout == "native\n"
    error = run("fast").stderr.splitlines()[-1]
    assert error.startswith("ValueError: FASTWHITEN_BACKEND: expected one of ['auto', 'native', ")
    assert error.endswith("got 'fast'")


def test_native_takes_no_part_in_other_devices() -> None:
    with pytest.raises(ValueError, match=r'^backend="native" serves CPU and CUDA tensors, got a'):
        backends.choose("native", META)
    assert fastwhiten.whiten(torch.empty(8, 3, device="meta")).shape == (8, 3)


def test_cuda_tensors_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native refuses with the reason; auto says once that it takes the slower one."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(cuda_module, "import_error", "there was no nvcc")
    monkeypatch.setattr(torch.version, "cuda", None)  # a torch for CUDA has Triton's kernels
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    backends._warn_once.cache_clear()
    with pytest.raises(RuntimeError, match=r'^backend="native": CUDA kernels: there was no nvcc$'):
        backends.choose("native", cuda)
    with pytest.warns(RuntimeWarning, match=r"slower reference backend: CUDA kernels: there was"):
        assert backends.choose("auto", cuda) == "reference"
    assert backends.explain()[1][1:] == (
        "reference",
        "plain PyTorch operations run there: there was no nvcc",
    )
    backends._warn_once.cache_clear()


def test_cuda_tensors_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "import_error", None)
    monkeypatch.setattr(cuda_module, "architectures", lambda: ["8.0", "9.0"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    cuda = torch.device("cuda", 1)
    assert backends.choose("auto", cuda) == backends.choose("native", cuda) == "native"
    assert backends.choose("reference", cuda) == "reference"
    assert "8.0, 9.0" in backends.explain()[1][2]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    with pytest.raises(RuntimeError, match=r"compiled for 8\.0, 9\.0, the GPU has compute.* 7\.5"):
        backends.choose("native", cuda)


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (["8.0"], (8, 9), True),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0"], (10, 0), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["9.0a"], (9, 0), True),
        (["10.0a"], (10, 3), False),
        (["8.0+PTX"], (7, 5), False),
    ],
)
def test_which_gpus_the_kernels_serve(archs, capability, expected) -> None:
    assert cuda_module.serves(archs, capability) is expected


def test_a_module_for_another_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loader says is passed on, with what to do."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda_module.importlib.util, "find_spec", lambda name: object())

    def fail(name):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(extension.importlib, "import_module", fail)
    assert cuda_module._load("13.0") == (
        "fastwhiten_cuda cannot be loaded (libcudart.so.12: cannot open shared object file); "
        f"run `pip install .` in {extension.ROOT}"
    )


def test_a_cuda_torch_over_a_cpu_build_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda_module.importlib.util, "find_spec", lambda name: None)
    assert cuda_module._load("no nvcc was found").startswith(
        "fastwhiten was built without CUDA kernels (no nvcc was found); run"
    )


def test_the_table_asks_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary serves some GPUs of a machine and not others: the table says what choose does."""
    capabilities = [(8, 6), (9, 0), (7, 5)]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda device: capabilities[device if isinstance(device, int) else device.index],
    )
    monkeypatch.setattr(cuda_module, "import_error", None)
    monkeypatch.setattr(cuda_module, "architectures", lambda: ["8.0"])
    cases = backends.explain()[1:-1]
    assert [(case, name) for case, name, _ in cases] == [
        ("CUDA tensors on cuda:0, GPU 0", "native"),
        ("CUDA tensors on cuda:1, GPU 1", "triton"),
        ("CUDA tensors on cuda:2, GPU 2", "reference"),
    ]
    assert "compiled for 8.0, the GPU has compute capability 9.0" in cases[1][2]
    assert backends.available()["cuda"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        backends._warn_once.cache_clear()
        chosen = [backends.choose("auto", torch.device("cuda", index)) for index in range(3)]
        backends._warn_once.cache_clear()
    assert chosen == [name for _, name, _ in cases]
    monkeypatch.setattr(cuda_module, "architectures", lambda: ["10.0"])
    assert "compiled for 10.0, the GPU has" in str(backends.available()["cuda"])


@pytest.mark.interpret
def test_triton_runs_its_own_operators() -> None:
    assert ops_of("triton", 20) == {"triton_whiten_forward", "triton_whiten_backward"}


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
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(cuda_module, "import_error", "there was no nvcc")
        assert backends.explain()[1][1] == "reference"
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
    monkeypatch.setattr(cuda_module, "import_error", "there was no nvcc")
    device = torch.device("cuda", 0)
    if expected == "triton":
        assert backends.choose("auto", device) == expected
        assert backends.explain()[1][1] == expected
    else:
        backends._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="slower reference backend"):
            assert backends.choose("auto", device) == expected
        backends._warn_once.cache_clear()
        with pytest.raises(ValueError, match=r"needs compute capability 8\.0 or later, cuda:0 has"):
            backends.choose("triton", device)


def test_eager_use_imports_no_compiler() -> None:
    """Neither triton nor torch's compiler, which takes seconds."""
    code = (
        "import sys, torch, fastwhiten; layer = fastwhiten.ChannelWhitening(4, batch_weight=0.5)\n"
        "layer(torch.randn(8, 4, requires_grad=True)).sum().backward()\n"
        "layer.eval()(torch.eye(4))\n"
        "print([name for name in ('triton', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
