"""The optional extension ``fastwhiten_cuda``: whether it is there, and which GPUs it serves.

It adds CUDA kernels to the ops of ``fastwhiten_cpu``, so :mod:`fastwhiten.backends.native` serves
both devices. :data:`import_error` holds the reason where there are none, else :data:`build` says
how they were built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from . import extension

REBUILD = "run `pip install .` in the source folder"
build: dict[str, Any] = {}


def _load(built_with: str) -> str | None:
    """Import the extension; return None, or why there are no CUDA kernels."""
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if importlib.util.find_spec("fastwhiten_cuda") is None:
        return f"fastwhiten was built without CUDA kernels ({built_with}); {REBUILD}"
    try:
        build.update(extension.load("fastwhiten_cuda"))  # the import registers the kernels
    except ImportError as error:  # from other sources, or for another major version of CUDA
        return str(error)
    return None


def architectures() -> list[str]:
    """Return what the kernels were compiled for, such as ``["8.0", "9.0+PTX"]``."""
    return list(build["cuda_archs"])


def serves(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Return whether kernels compiled for ``archs`` run on a GPU of that compute capability.

    A binary serves its own major version from its minor version on; PTX everything from its
    version on.

    Example:
        >>> from fastwhiten.backends.cuda_module import serves
        >>> serves(["8.0"], (8, 6)), serves(["8.0"], (9, 0)), serves(["8.0+PTX"], (9, 0))
        (True, False, True)
    """
    for arch in archs:
        number = arch.removesuffix("+PTX").rstrip("af")
        major, minor = (int(part) for part in number.split("."))
        if arch.endswith("+PTX") and (major, minor) <= capability:
            return True
        if number == arch.removesuffix("+PTX"):
            fits = major == capability[0] and minor <= capability[1]
        else:  # "9.0a" serves exactly that one
            fits = (major, minor) == capability
        if fits:
            return True
    return False


def missing(index: int | None) -> str | None:
    """Return why there are no CUDA kernels for GPU ``index`` (None: the current one), or None."""
    if import_error is not None:
        return import_error
    capability = torch.cuda.get_device_capability(index)
    if serves(architectures(), capability):
        return None
    version = ".".join(map(str, capability))
    return (
        f"the CUDA kernels were compiled for {', '.join(architectures())}, the GPU has compute "
        f"capability {version}; {REBUILD} with TORCH_CUDA_ARCH_LIST={version} (8.0 or later)"
    )


# What torch.compiler.assume_constant_result sets; calling it would import the compiler, and triton.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]

import_error: str | None = "fastwhiten_cpu is not loaded"


def load(built_with: str) -> None:
    """Load the extension; ``fastwhiten_cpu``, which has the ops, is loaded already.

    Args:
        built_with: nvcc's version, or what setup.py said about the CUDA module.
    """
    global import_error
    import_error = _load(built_with)


def use(built: dict[str, Any]) -> None:
    """Take what a build for the Hub says of itself: its one module has CUDA kernels, or none."""
    global import_error
    if built["cuda_archs"]:
        build.update(built)
        import_error = None
    else:
        import_error = "this build for the Hub serves the CPU"
