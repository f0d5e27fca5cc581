"""setup.py's decisions (tools/), and what an sdist and a wheel contain."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import build_helpers as helpers
import pytest
import setup_env
import setuptools
from release import symbols, unstable_symbols
from torch.utils import cpp_extension

import fastwhiten

ROOT = Path(__file__).resolve().parent.parent

# They build in the checkout, one after another also where tests run side by side.
pytestmark = pytest.mark.xdist_group("build")


def test_side_by_side_tests_that_build_are_one_group(request):
    """With pytest 9.2.0, pytest-xdist 3.8.0 has no groups: two sdists were made in one folder."""
    if getattr(request.config.option, "loadgroup", False):  # in a worker of --dist loadgroup
        assert request.node.nodeid.endswith("@build"), "use the versions of constraints.txt"


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )


def distribution(folder: Path, version: str) -> Path:
    """Makes `folder` look like a site-packages with a torch of that version."""
    information = folder / f"torch-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    return folder


# --- setup.py's decisions ---------------------------------------------------------------------


def test_free_threaded_python_is_an_error():
    helpers.refuse_free_threaded(False)
    with pytest.raises(RuntimeError, match="expected a Python with the global interpreter lock"):
        helpers.refuse_free_threaded(True)


def test_find_torch_takes_the_first_on_the_path(tmp_path):
    first = distribution(tmp_path / "first", "2.13.0+cpu")
    second = distribution(tmp_path / "second", "2.15.0a0+git1234")
    assert helpers.find_torch([str(tmp_path), str(first), str(second)]) == "2.13.0+cpu"
    assert helpers.find_torch([str(second), str(first)]) == "2.15.0a0+git1234"


def test_find_torch_finds_none(tmp_path):
    assert helpers.find_torch([str(tmp_path), str(tmp_path / "absent")]) is None


def test_find_torch_passes_over_one_that_is_too_old(tmp_path):
    assert helpers.find_torch([str(distribution(tmp_path, "2.9.1"))]) is None


@pytest.mark.parametrize(
    ("version", "expected"), [("2.10.0", (2, 10)), ("2.9.1+cu126", (2, 9)), ("3.0", (3, 0))]
)
def test_release_compares_numbers_not_text(version, expected):
    assert helpers.release(version) == expected


def test_release_of_nonsense_is_an_error():
    with pytest.raises(ValueError, match=r"expected a version such as 2\.13\.0, got 'main'"):
        helpers.release("main")


def test_environment_path_looks_through_an_isolated_build(tmp_path):
    # pip lays the isolated environment over the target one with these two variables.
    venv.create(tmp_path / "target", with_pip=False)
    overlay = {**os.environ, "PYTHONPATH": str(tmp_path / "overlay"), "PYTHONNOUSERSITE": "1"}
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import build_helpers as h; "
    code += "print(*h.environment_path(sys.executable), sep='\\n')"
    python = tmp_path / "target" / "bin" / "python"
    path = run(python, "-c", code, env=overlay, check=True).stdout.splitlines()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert str(tmp_path / "target" / "lib" / version / "site-packages") in path
    assert str(tmp_path / "overlay") not in path


def test_without_torch_the_build_asks_for_one(tmp_path):
    # An environment that has nothing but setuptools, which the isolated build would bring.
    site = tmp_path / "overlay"
    site.mkdir()
    packages = Path(setuptools.__file__).parent.parent
    for name in ("setuptools", "_distutils_hack"):
        (site / name).symlink_to(packages / name)
    venv.create(tmp_path / "empty", with_pip=False)
    code = "import setuptools.build_meta as b; print(b.get_requires_for_build_wheel())"
    python = tmp_path / "empty" / "bin" / "python"
    result = run(python, "-c", code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(site)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "['torch>=2.10']"


def test_a_build_without_isolation_and_without_torch_says_what_to_do(tmp_path):
    """`pip install --no-build-isolation` in an environment that has no torch."""
    packages = Path(setuptools.__file__).parent.parent
    site = tmp_path / "site"
    site.mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (site / name).symlink_to(packages / name)
    venv.create(tmp_path / "empty", with_pip=False)
    # setup.py with the hook's requirement taken as met, as without isolation.
    code = "import setuptools, runpy, sys; sys.argv = ['setup.py', 'build_ext']; "
    code += "real = setuptools.setup; "
    code += "setuptools.setup = lambda setup_requires, **rest: real(**rest); "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    python = tmp_path / "empty" / "bin" / "python"
    result = run(python, "-c", code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(site)})
    assert result.returncode != 0
    assert "expected torch >= 2.10 to build with, got none; install it first" in result.stderr


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "jobs"), [(2, 64, 2), (64, 16, 8), (8, 1, 1), (1, 0, 1)]
)
def test_max_jobs_follows_processors_and_memory(cpus, gigabytes, jobs):
    assert helpers.max_jobs(cpus, gigabytes * 2**30) == jobs


def test_nvcc_gets_more_memory_each():
    assert helpers.max_jobs(64, 16 * 2**30, cuda=True) == 4
    assert helpers.max_jobs(8, 2**30, cuda=True) == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("max\n", 8000), ("3000\n", 3000), ("9000\n", 8000), (None, 8000)]
)
def test_a_container_may_have_less_memory_than_the_machine(tmp_path, text, expected):
    limit = tmp_path / "memory.max"
    if text is not None:
        limit.write_text(text)
    assert helpers.usable_memory(8000, str(limit)) == expected


def test_flags_suit_every_processor_and_the_oldest_torch():
    flags = helpers.compile_flags(["/somewhere"], "")
    assert "-std=c++17" in flags
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in flags
    assert not [flag for flag in flags if flag.startswith(("-march", "-mtune", "-fsanitize"))]


def test_sanitizers_reach_compiler_and_linker():
    expected = "-fsanitize=address,undefined"
    assert expected in helpers.compile_flags([], "address,undefined")
    assert expected in helpers.sanitize_flags("address,undefined")


def test_the_header_does_not_depend_on_the_folder():
    headers = {
        helpers.build_header(helpers.flags_info(helpers.compile_flags([folder], "")))
        for folder in ("/home/a", "/home/b")
    }
    text = re.search(r'R"json\((.*)\)json"', headers.pop())
    assert not headers
    assert json.loads(text[1])["flags"].startswith("-O3 -std=c++17")


# --- make's environment -----------------------------------------------------------------------


def test_constraints_leave_installed_packages_alone():
    lines = ["# tested", "torch==2.13.0", 'numpy==2.4.6; python_version >= "3.11"', "a.B_c==1", ""]
    assert setup_env.missing_constraints(lines, {"torch", "a-b-c"}) == [lines[2]]


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"expected Python >= 3\.10, got .*make PYTHON="):
        setup_env.create("unused")


def test_every_extra_has_a_tested_version():
    constraints = (ROOT / "constraints.txt").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"^(?:bench|docs|fit|train|test) = \[(.*?)\]", project, re.M | re.S)
    names = re.findall(r'"([\w-]+)', " ".join(extras))
    assert names
    assert not [name for name in names if f"\n{name}==" not in constraints]


def test_a_symbol_outside_the_stable_abi_is_found(tmp_path):
    source, module = tmp_path / "a.cpp", tmp_path / "a.so"
    declared = 'namespace at { int unstable(); }\nextern "C" int aoti_torch_stable();\n'
    source.write_text(declared + "int f() { return at::unstable() + aoti_torch_stable(); }\n")
    run("c++", "-shared", "-fPIC", "-o", module, source, check=True)
    assert unstable_symbols(module) == ["at::unstable()"]
    with pytest.raises(SystemExit, match=r"stable ABI alone in .*a\.so, got\nat::unstable\(\)"):
        symbols(module)
    source.write_text(declared + "int f() { return aoti_torch_stable(); }\n")
    run("c++", "-shared", "-fPIC", "-o", module, source, check=True)
    symbols(module)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fastwhiten.__version__}\n" in citation


# --- sdist and wheel --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    result = run(sys.executable, "-c", code, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("fastwhiten-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    result = run(sys.executable, "-m", "pip", "wheel", *options, sdist)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("fastwhiten-*.whl"))


@pytest.mark.slow
def test_sdist_has_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.[hc]*")}
    python = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fastwhiten").rglob("*.py")}
    files = {"setup.py", "pyproject.toml", "tools/build_helpers.py", "fastwhiten/py.typed"}
    files |= {"tools/build_cuda.py", "csrc/cuda/statistics.cu", "csrc/cuda/statistics.cuh"}
    files |= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"}
    assert not (sources | python | files) - names


@pytest.mark.slow
def test_sdist_has_no_build_outputs(sdist):
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert not [n for n in names if n.endswith((".so", ".pyc", "_sources.json"))]


@pytest.mark.full
def test_wheel_serves_every_python_from_3_10(wheel):
    assert re.fullmatch(r"fastwhiten-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    expected = {"py.typed", "__init__.py", "backends/_sources.json"}
    assert not {f"fastwhiten/{name}" for name in expected} - set(names)
    # Nothing but the package and its modules: no tests, no tools, no sources of the extension.
    top = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert top == {"fastwhiten", "fastwhiten_cpu.abi3.so"}


@pytest.mark.full
def test_extension_uses_stable_symbols_only(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        module = archive.extract("fastwhiten_cpu.abi3.so", tmp_path)
    assert not unstable_symbols(module)


@pytest.mark.full
def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--target", target]
    result = run(sys.executable, "-m", "pip", "install", *options, wheel)
    assert result.returncode == 0, result.stderr
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = run(
        sys.executable, ROOT / "tools" / "release.py", "try", cwd=tmp_path, env=environment
    )
    assert result.stdout.startswith(str(target)), result.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_sums_of_products_stay_in_registers(isa: str, tmp_path: Path) -> None:
    """GCC has written them to the stack in every round of the loop: half of the speed."""
    folders = cpp_extension.include_paths()
    flags = [*sysconfig.get_config_var("CFLAGS").split(), *helpers.compile_flags([], "")]
    includes = [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in folders)]
    source, listing = ROOT / f"csrc/cpu/kernels_{isa}.cpp", tmp_path / "kernels.s"
    done = run("c++", *flags, *includes, "-S", "-o", listing, source)
    assert done.returncode == 0, done.stderr
    # From a label to a jump back to it, with no other jump between.
    loops = re.findall(
        r"^(\.L\w+):\n((?:(?!\tj).*\n)*)\tj\w+\t\1$", listing.read_text(), re.MULTILINE
    )
    products = [
        body
        for _, body in loops
        if len(re.findall(r"\tvf\w+\t", body)) >= 8
        and len(re.findall(r"\tvbroadcasts[sd]\t[^%]*\(|\{1to", body)) >= 3
    ]
    assert len(products) >= 4
    stored = [re.findall(r"\tvmov\w+\t%[xyz]mm\d+, -?\d*\(%r[sb]p.*", body) for body in products]
    assert not any(stored), stored
