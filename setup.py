"""Builds `fastwhiten_cpu` and `fastwhiten_cuda` with the torch of the environment it installs into.

torch is not in pyproject.toml's build requirements: pip's build isolation would then download one
of its own, often of several GB. The target environment's torch is looked up instead, and only where
there is none does `setup_requires` ask for one. The metadata stand in pyproject.toml.

Environment variables:
    FASTWHITEN_CUDA: auto (default: the CUDA module where torch has CUDA and an nvcc of the same
        major version is found), 0 (never) or 1 (what is missing is an error).
    CUDA_HOME: the CUDA toolkit; by default nvcc is looked for on PATH.
    TORCH_CUDA_ARCH_LIST: what nvcc compiles for, by default "8.0;9.0+PTX".
    FASTWHITEN_NVCC_STRICT: 1 for warnings and spills as errors (see tools/kernel_resources.py).
    FASTWHITEN_SANITIZE: a list for -fsanitize, for example address,undefined (see CONTRIBUTING.md).
    MAX_JOBS: how many compilers run at once; by default as many as processors and memory allow.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))  # the PEP 517 hooks run this file without its folder

import build_cuda  # noqa: E402
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
TORCH = locate_torch()
EXTENSIONS: list[Extension] = []
NATIVE = helpers.sources(ROOT, "fastwhiten_cpu")

if TORCH is None:
    EXTENSIONS.append(Extension("fastwhiten_cpu", NATIVE, py_limited_api=True, language="c++"))

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

    TOOLKIT = build_cuda.find_toolkit(os.environ)
    CUDA = build_cuda.decide(os.environ.get("FASTWHITEN_CUDA", "auto"), torch.version.cuda, TOOLKIT)
    if CUDA.build and TOOLKIT is not None:
        # torch takes the folder above nvcc on PATH, which can be a script; read at the import below
        os.environ["CUDA_HOME"] = TOOLKIT.home
    from torch.utils import cpp_extension

    HEADERS = cpp_extension.include_paths()
    FLAGS = helpers.compile_flags([str(ROOT), *HEADERS], SANITIZE)
    ARCHS = build_cuda.parse_archs(os.environ.get("TORCH_CUDA_ARCH_LIST")) if CUDA.build else []
    TORCH_BUILD = {
        "py_limited_api": True,
        "language": "c++",
        "include_dirs": [str(ROOT / "csrc")],
        "extra_link_args": helpers.sanitize_flags(SANITIZE),
    }
    EXTENSIONS.append(
        Extension(
            "fastwhiten_cpu",
            NATIVE,
            library_dirs=cpp_extension.library_paths(),
            # Linked by name: Python loads torch's libraries with RTLD_LOCAL, so their symbols are
            # not visible to a module that does not ask for them.
            libraries=["c10", "torch", "torch_cpu"],
            # As system headers: warnings are wanted about this project's code only.
            extra_compile_args=[*FLAGS, *[f"-isystem{folder}" for folder in HEADERS]],
            **TORCH_BUILD,
        )
    )
    if CUDA.build:
        ALL_HEADERS = cpp_extension.include_paths("cuda")
        EXTENSIONS.append(
            Extension(
                "fastwhiten_cuda",
                helpers.sources(ROOT, "fastwhiten_cuda"),
                library_dirs=cpp_extension.library_paths("cuda"),
                libraries=["c10", "torch", "torch_cpu", "torch_cuda", "cudart"],
                extra_compile_args={
                    "cxx": [*FLAGS, *[f"-isystem{folder}" for folder in ALL_HEADERS]],
                    "nvcc": build_cuda.nvcc_flags(
                        ARCHS,
                        [str(ROOT)],
                        ALL_HEADERS,
                        os.environ.get("FASTWHITEN_NVCC_STRICT") == "1",
                    ),
                },
                **TORCH_BUILD,
            )
        )

    class BuildNative(cpp_extension.BuildExtension):
        """Compiles with ninja, and records in the modules from what and how they were built.

        ``build_ext --parallel 2`` builds both modules at once, each with MAX_JOBS compilers.
        """

        def finalize_options(self) -> None:
            """Keep the objects of an editable build, so that the next one is incremental."""
            super().finalize_options()
            if self.editable_mode:  # setuptools has set a temporary folder
                self.build_temp = str(ROOT / "build" / "editable")

        def build_extension(self, extension: Extension) -> None:
            """Build in a folder of the module's own: torch writes a build.ninja into it."""
            own = copy.copy(self)
            own.build_temp = os.path.join(self.build_temp, extension.name)
            super(BuildNative, own).build_extension(extension)

        def run(self) -> None:
            """Write the header that csrc/common/python_module.h includes, then build."""
            print(CUDA.message)
            physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            memory = helpers.usable_memory(physical)
            jobs = helpers.max_jobs(os.cpu_count() or 1, memory, CUDA.build)
            os.environ.setdefault("MAX_JOBS", str(jobs))
            command = [cpp_extension.get_cxx_compiler(), "--version"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            nvcc = ".".join(map(str, TOOLKIT.version)) if TOOLKIT and CUDA.build else CUDA.message
            fingerprints = helpers.extension().of_sources(ROOT / "csrc")
            build = {
                "version": self.distribution.get_version(),
                "sources": fingerprints,
                "torch": torch.__version__,
                "compiler": shown.splitlines()[0],
                **helpers.flags_info(FLAGS),
                "cuda": nvcc.removeprefix("fastwhiten: "),
                "cuda_archs": ARCHS,
            }
            header = Path(self.build_temp).resolve() / "generated" / "fastwhiten_build.h"
            helpers.write_if_changed(header, helpers.build_header(build))
            for extension in self.extensions:
                extension.include_dirs.append(str(header.parent))
            if not self.use_ninja:  # then torch changes one compiler object for every file
                self.parallel = None
            super().run()
            if not self.inplace:  # a wheel has no sources to compare with
                record = Path(self.build_lib) / "fastwhiten" / "backends" / "_sources.json"
                helpers.write_if_changed(record, json.dumps(fingerprints))


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildNative},
    setup_requires=[] if TORCH else ["torch>=2.10"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
