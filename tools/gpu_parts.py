"""The parts of tools/gpu_check.sh: their commands, their limits, and what they are to take."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import gpu_summary

ROOT = Path(__file__).resolve().parent.parent
GRACE = 10.0  # seconds between asking a part to end and making it


@dataclass(frozen=True)
class Setting:
    """What the commands depend on.

    Attributes:
        folder: where results go.
        sources: what identifies the sources.
        dry: without a GPU.
        quick: a dry run of a minute.
    """

    folder: Path
    sources: str
    dry: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Step:
    """A command of a part.

    Attributes:
        command: what is run, in the repository's root.
        environment: variables to add.
    """

    command: list[str]
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        steps: returns its commands, given the seconds that it has.
        limit: seconds after which it is stopped.
        least: seconds that earlier parts leave to it.
        usual: what it is expected to take on 16 cores and an H100, not measured yet.
        log: file in the results' folder.
    """

    steps: Callable[[Setting, float], list[Step]]
    limit: float
    least: float
    usual: float
    log: str


IS_BUILT = (
    "import fastwhiten.backends as b; reason = b.available()['cuda']; "
    "assert reason is None, f'the CUDA kernels were not built: {reason}'"
)
GPU = (
    "import torch; assert torch.cuda.is_available(), 'torch.cuda.is_available() is False: "
    "a GPU and a CUDA build of PyTorch are needed; --dry-run tries the parts without them'; "
    "print(torch.cuda.get_device_name(), torch.__version__)"
)
# What building and testing need beside torch: module, and how pip calls it.
TOOLS = {"setuptools": "setuptools>=77", "ninja": "ninja", "pytest": "pytest"}


def python(*arguments: str | Path) -> list[str]:
    """Return a command of the interpreter that runs this program."""
    return [sys.executable, *map(str, arguments)]


def missing_tools() -> list[str]:
    """Return what pip has to install before the build: nothing where all is there, offline."""
    lacking = [need for name, need in TOOLS.items() if importlib.util.find_spec(name) is None]
    if not lacking and int(metadata.version("setuptools").split(".")[0]) < 77:
        lacking = [TOOLS["setuptools"]]
    return lacking


def gpu_architecture() -> str:
    """Return the compute capability of the GPU, such as "9.0"; "" where there is none."""
    code = (
        "import torch; print(*torch.cuda.get_device_capability(), sep='.')"
        " if torch.cuda.is_available() else None"
    )
    return subprocess.run(python("-c", code), capture_output=True, text=True).stdout.strip()


def build(setting: Setting, seconds: float) -> list[Step]:
    """Install with the CUDA module, for this machine's GPU alone: that is what will run."""
    if setting.dry:
        return [Step(python("-c", "import torch, fastwhiten_cpu"))]
    pip = ["-m", "pip", "install", "--disable-pip-version-check"]
    lacking = missing_tools()
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or gpu_architecture()
    variables = {"FASTWHITEN_CUDA": "1"} | ({"TORCH_CUDA_ARCH_LIST": archs} if archs else {})
    return [
        Step(python("-c", GPU)),
        *([Step(python(*pip, *lacking))] if lacking else []),
        Step(python(*pip, "--no-build-isolation", "--no-deps", "-e", "."), variables),
        Step(python("-c", IS_BUILT)),
        Step(python("-m", "fastwhiten.info")),
    ]


def tests(setting: Setting, seconds: float) -> list[Step]:
    """Every test for a GPU; in several processes where pytest-xdist is there.

    Triton compiles some hundred kernels, each on one core.
    """
    options = [
        "-q",
        "--tier",
        "all",
        "-p",
        "no:cacheprovider",
        f"--junit-xml={setting.folder / gpu_summary.TESTS_FILE}",
    ]
    # A test that hangs shows where in the log.
    options += ["-o", f"faulthandler_timeout={max(20.0, 0.6 * seconds):.0f}"]
    if not setting.dry and importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    where = ["tests/gpu"]
    if setting.quick:
        options += ["-m", "not slow", "-k", "native", "--tier", "test"]
        where = ["tests/gpu/test_devices.py", "tests/gpu/test_training.py"]
    return [Step(python("-m", "pytest", *options, *where))]


def benchmarks(setting: Setting, seconds: float) -> list[Step]:
    """Everything that is not in the file yet."""
    options = [
        "--output",
        setting.folder / gpu_summary.BENCHMARKS_FILE,
        "--sources",
        setting.sources,
    ]
    # A case under way may take some seconds more.
    options += ["--seconds", f"{max(5.0, 0.8 * seconds - GRACE):.0f}"]
    if setting.dry:
        options += ["--device", "cpu", "--rounds", "2"]
    if setting.quick:
        options += ["--small"]
    return [Step(python("-m", "benchmarks.gpu", *options))]


def sanitizer(tool: str) -> Callable[[Setting, float], list[Step]]:
    """Return the steps of one of compute-sanitizer's tools."""

    def steps(setting: Setting, seconds: float) -> list[Step]:
        cases = python("tools/gpu_cases.py")
        if setting.dry:  # the cases by themselves
            backends = ["native"] if setting.quick or tool != "memcheck" else ["native", "triton"]
            return [Step([*cases, backend]) for backend in backends]
        command = [*sanitize(tool, ["fastwhiten"]), *cases, "native"]
        if tool != "memcheck":  # shared memory and barriers of Triton's kernels are the compiler's
            return [Step(command)]
        # PyTorch's allocator would hide what runs over a tensor's end.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        compiled = [*sanitize(tool, triton_kernels()), *cases, "triton"]
        return [Step(command, alone), Step(compiled, alone)]

    return steps


def triton_kernels() -> list[str]:
    """Return the names of the Triton kernels."""
    sources = (ROOT / "fastwhiten" / "kernels").glob("*.py")
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    return sorted(set(re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)))


def sanitize(tool: str, names: list[str]) -> list[str]:
    """Return the command that runs another one, checking kernels that have one of the names.

    The tools make kernels a hundred times slower; PyTorch's own need no check.
    """
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{h}/bin" for h in homes if h)])
    found = shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"
    only = [part for name in names for part in ("--kernel-name", f"kns={name}")]
    return [found, "--tool", tool, *only, "--error-exitcode", "9"]


PARTS = {
    "build": Part(build, limit=300, least=0, usual=120, log="build.log"),
    "tests": Part(tests, limit=240, least=90, usual=150, log="tests.log"),
    "benchmarks": Part(benchmarks, limit=240, least=90, usual=120, log="benchmarks.log"),
    "memcheck": Part(sanitizer("memcheck"), limit=90, least=30, usual=40, log="sanitizer.log"),
    "racecheck": Part(sanitizer("racecheck"), limit=90, least=30, usual=40, log="sanitizer.log"),
    "synccheck": Part(sanitizer("synccheck"), limit=60, least=20, usual=20, log="sanitizer.log"),
}
