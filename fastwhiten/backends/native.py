"""The compiled backend: the same stages through ``torch.ops.fastwhiten``.

The kernels are in csrc, for the CPU and, where :mod:`fastwhiten.backends.cuda_module` could be
loaded, for CUDA.
Importing this module loads the extension and registers a fake kernel for every op, so that
``torch.compile`` and ``torch.export`` can trace it. :data:`import_error` holds the reason when the
extension cannot be loaded; :data:`build` says else how it was built, and which file it is.
"""

from __future__ import annotations

from typing import Any

import torch

from . import cuda_module, extension, fakes

import_error: str | None = None
build: dict[str, Any] = {}
try:
    build = extension.load("fastwhiten_cpu")  # the import registers the ops
except ImportError as error:  # not built, for another platform, from other sources
    import_error = str(error)

if import_error is None:
    cuda_module.load(build["cuda"])
    for _name, _fake in fakes.FAKES.items():
        torch.library.register_fake(f"fastwhiten::{_name}")(_fake)
    statistics = torch.ops.fastwhiten.statistics
    eigh = torch.ops.fastwhiten.eigh
    eigh_sweeps = torch.ops.fastwhiten.eigh_sweeps
    intensity = torch.ops.fastwhiten.intensity
    factor = torch.ops.fastwhiten.factor
    apply = torch.ops.fastwhiten.apply
    backward_reduce = torch.ops.fastwhiten.backward_reduce
    backward_matrix = torch.ops.fastwhiten.backward_matrix
    backward_apply = torch.ops.fastwhiten.backward_apply
    whiten_forward = torch.ops.fastwhiten.whiten_forward
    whiten_backward = torch.ops.fastwhiten.whiten_backward
    sample_statistics = torch.ops.fastwhiten.sample_statistics
    sample_apply = torch.ops.fastwhiten.sample_apply
    sample_backward = torch.ops.fastwhiten.sample_backward
