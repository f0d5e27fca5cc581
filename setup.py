"""Builds `fastwhiten._C`, the C++ extension, with the torch of the environment it installs into.

torch is not in pyproject.toml's build requirements: pip's build isolation would then download one
of its own, often of several GB. The target environment's torch is looked up instead, and only where
there is none does `setup_requires` ask for one. The metadata stand in pyproject.toml.

Environment variables:
    FASTWHITEN_CUDA: auto (default), 0 or 1; this version has CPU sources only, so 1 is an error.
    FASTWHITEN_SANITIZE: a list for -fsanitize, for example address,undefined (see CONTRIBUTING.md).
    MAX_JOBS: how many compilers run at once; by default as many as processors and memory allow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))  # the PEP 517 hooks run this file without its folder

import build_helpers as helpers  # noqa: E402

SANITIZE = os.environ.get("FASTWHITEN_SANITIZE", "")


def locate_torch() -> str | None:
    """Return the version of the torch to build with, after making it importable."""
    version = helpers.find_torch(sys.path)
    if version is None:
        # Appended, not inserted: setuptools and ninja stay those of the isolated environment.
        target = [e for e in helpers.environment_path(sys.executable) if e not in sys.path]
        version = helpers.find_torch(target)
        if version is not None:
            sys.path.extend(target)
    return version


helpers.refuse_free_threaded(bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
CUDA_MESSAGE = helpers.cuda_message(os.environ.get("FASTWHITEN_CUDA", "auto"))
TORCH = locate_torch()

if TORCH is None:
    TORCH_BUILD = {}

    class BuildNative(build_ext):
        """Says what is missing where the build was started without its requirements."""

        def run(self) -> None:
            """Raise: there are no headers to compile with."""
            raise RuntimeError(
                "fastwhiten: expected torch >= 2.10 to build with, got none; "
                "install it first (pip install torch), or build with pip's isolation"
            )

else:
    import torch
    from torch.utils import cpp_extension

    HEADERS = cpp_extension.include_paths()
    FLAGS = helpers.compile_flags([str(ROOT), *HEADERS], SANITIZE)
    TORCH_BUILD = {
        "include_dirs": [str(ROOT / "csrc")],
        "library_dirs": cpp_extension.library_paths(),
        # Linked by name: Python loads torch's libraries with RTLD_LOCAL, so their symbols are not
        # visible to a module that does not ask for them.
        "libraries": ["c10", "torch", "torch_cpu"],
        # As system headers: warnings are wanted about this project's code only.
        "extra_compile_args": [*FLAGS, *[f"-isystem{folder}" for folder in HEADERS]],
        "extra_link_args": helpers.sanitize_flags(SANITIZE),
    }

    class BuildNative(cpp_extension.BuildExtension):
        """Compiles with ninja and records how in `fastwhiten/_build_info.py`."""

        def finalize_options(self) -> None:
            """Keep the objects of an editable build, so that the next one is incremental."""
            super().finalize_options()
            if self.editable_mode:  # setuptools has set a temporary folder
                self.build_temp = str(ROOT / "build" / "editable")

        def run(self) -> None:
            """Build, then write `_build_info.py` beside the module."""
            print(CUDA_MESSAGE)
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            os.environ.setdefault("MAX_JOBS", str(helpers.max_jobs(os.cpu_count() or 1, memory)))
            super().run()
            command = [cpp_extension.get_cxx_compiler(), "--version"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            info = helpers.build_info(torch.__version__, shown.splitlines()[0], FLAGS)
            target = Path(self.get_ext_fullpath("fastwhiten._C")).with_name("_build_info.py")
            target.write_text(info, encoding="utf-8")


def sources() -> list[str]:
    """Return the C++ sources: module.cpp, then the schemas (ops) and the CPU kernels (cpu)."""
    found = [*(ROOT / "csrc").glob("ops/*.cpp"), *(ROOT / "csrc").glob("cpu/*.cpp")]
    return ["csrc/module.cpp", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


setup(
    ext_modules=[
        Extension("fastwhiten._C", sources(), py_limited_api=True, language="c++", **TORCH_BUILD)
    ],
    cmdclass={"build_ext": BuildNative},
    setup_requires=[] if TORCH else ["torch>=2.10"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
