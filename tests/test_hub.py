"""The package under another name and namespace, as builds for the Hugging Face Hub have it.

kernel-builder itself is not run: these are its rules for Python code and its way of building and
loading (packaging/huggingface).
"""

from __future__ import annotations

import ast
import concurrent.futures
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import build_helpers as helpers
import pytest
from torch.utils import cpp_extension

from fastwhiten.backends import cuda_module, extension

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "packaging" / "huggingface"
BUILD = tomllib.loads((FOLDER / "build.toml").read_text())
KERNELS = BUILD["kernel"]
FILES = sorted(path for path in (ROOT / "fastwhiten").rglob("*.py") if path.name != "_ops.py")
CPU, CUDA = KERNELS["fastwhiten_cpu"], KERNELS["fastwhiten_cuda"]
REGISTERING = {f"torch.library.{name}" for name in ("custom_op", "register_fake", "Library")}
NAMESPACE = "_fastwhiten_cpu_0123abc"


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "fastwhiten"
    subprocess.run([sys.executable, FOLDER / "assemble.py", folder], check=True)
    return folder


def test_the_lists_name_what_setup_py_compiles(assembled: Path) -> None:
    """And the headers: kernel-builder copies what is listed, and nothing else."""
    shared = BUILD["torch"]["src"]
    of_wheels = {"csrc/cuda/module.cpp"}  # a second module's

    def compiled(files: list[str]) -> set[str]:
        return {file for file in files if file.endswith((".cpp", ".cu"))}

    native, cuda = (set(helpers.sources(ROOT, name)) for name in helpers.SOURCES)
    assert compiled(shared + CPU["src"]) == native
    assert compiled(shared + CUDA["src"]) == (native | cuda) - of_wheels
    everything = shared + CPU["src"] + CUDA["src"]
    files = {p.relative_to(assembled).as_posix() for p in assembled.glob("csrc/**/*.*")}
    assert files - set(everything) == of_wheels and set(everything) <= files
    assert set(shared) & set(CPU["src"] + CUDA["src"]) == set()


def test_the_stable_abi_is_that_of_the_wheel() -> None:
    minimum = ".".join(map(str, helpers.MIN_TORCH))
    assert BUILD["torch"]["stable-abi"] == dict.fromkeys(BUILD["general"]["backends"], minimum)


def test_a_build_for_cuda_says_for_which_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"backend": {"type": "cuda", "archs": ["8.0", "9.0"]}}))
    monkeypatch.setattr(extension, "METADATA", metadata)
    monkeypatch.setattr(cuda_module, "build", {})
    monkeypatch.setattr(cuda_module, "import_error", "not loaded")
    cuda_module.use(extension.of_hub(SimpleNamespace(build="{}", __file__="a.so")))
    assert cuda_module.import_error is None
    assert cuda_module.architectures() == ["8.0", "9.0"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_knows_neither_the_packages_name_nor_the_namespace(path: Path) -> None:
    at_import = {"torch", "triton"}  # below kernels/, which is imported when a kernel runs
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert "fastwhiten" not in {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None and node.module.split(".")[0] != "fastwhiten"
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "torch.ops.fastwhiten"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in REGISTERING:
            assert ast.unparse(node.args[0]).startswith("add_op_namespace_prefix("), node.lineno
    for node in ast.parse(path.read_text()).body:
        names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        roots = {name.split(".")[0] for name in names}
        assert roots <= at_import | sys.stdlib_module_names, path


def build_module(folder: Path, target: Path) -> None:
    """Compile as kernel-builder's files for CMake do for the CPU, and link."""
    torch = cpp_extension.include_paths()
    include = [sysconfig.get_path("include"), str(folder / "csrc")]
    options = ["-DNDEBUG", "-fPIC", "-std=gnu++20", "-fno-gnu-unique"]
    options += [f"-DTORCH_EXTENSION_NAME={NAMESPACE}", "-DPy_LIMITED_API=3", "-DCPU_KERNEL"]
    options += [f"-DTORCH_TARGET_VERSION={helpers.TORCH_TARGET}"]
    options += [f"-I{path}" for path in include] + [f"-isystem{path}" for path in torch]

    def compile_source(source: str, flags: list[str]) -> Path:
        made = target.parent / f"{Path(source).stem}.o"
        command = ["c++", "-c", *options, *flags, "-o", made, folder / source]
        subprocess.run(command, check=True)
        return made

    parts = (BUILD["torch"], CPU)
    work = [(s, part["cxx-flags"]) for part in parts for s in part["src"] if s.endswith(".cpp")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda pair: compile_source(*pair), work))
    link = [f"-L{path}" for path in cpp_extension.library_paths()]
    link += ["-lc10", "-ltorch", "-ltorch_cpu"]
    subprocess.run(["c++", "-shared", "-o", target, *objects, *link], check=True)


BOTH = """
import importlib.util, sys
sys.modules["numpy"] = None
import torch, fastwhiten
from fastwhiten import backends

namespace, folder = sys.argv[1:]
names = lambda: set(torch._C._dispatch_get_all_op_names())
before = names()
# As the package `kernels` loads one.
spec = importlib.util.spec_from_file_location(namespace, f"{folder}/__init__.py")
hub = sys.modules[namespace] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)
hub_backends = importlib.import_module(f"{namespace}.backends")
importlib.import_module(f"{namespace}.backends.triton")
added = names() - before
assert {name.split("::")[0] for name in added} == {namespace}, added
assert f"{namespace}::whiten_forward" in added and f"{namespace}::triton_apply" in added
assert hub_backends.available()["native"] is None, hub_backends.available()
assert hub_backends.native.build["file"].startswith(folder)
assert hub_backends.native.build["sources"] == backends.native.build["sources"]

results = []
for package in (fastwhiten, hub):
    x = torch.randn(96, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = package.ChannelWhitening(12, groups=2, batch_weight=0.5, backend="native")
    step = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = step(x)
    y.pow(3).sum().backward()
    results.append((y, x.grad, layer.running_cov, layer.eval()(x), package.whiten(x)))
    rows = package.Whitener().fit(x.detach()).transform(x.detach())
    assert isinstance(rows, torch.Tensor)
for ours, other in zip(*results):
    assert ours.equal(other)
"""


@pytest.mark.full
def test_two_namespaces_in_one_process(assembled: Path) -> None:
    package = assembled / "torch-ext" / "fastwhiten"
    build_module(assembled, package / f"{NAMESPACE}.abi3.so")
    # What kernel-builder writes beside it.
    (package / "_ops.py").write_text(
        f"import torch\nfrom . import {NAMESPACE}\nops = torch.ops.{NAMESPACE}\n"
        f"def add_op_namespace_prefix(op_name):\n    return f'{NAMESPACE}::{{op_name}}'\n"
    )
    (package / "metadata.json").write_text(
        json.dumps({"id": NAMESPACE, "backend": {"type": "cpu"}})
    )
    command = [sys.executable, "-c", BOTH, NAMESPACE, str(package)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
