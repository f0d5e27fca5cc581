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

from .. import _ops
from .._ops import add_op_namespace_prefix, ops
from . import cuda_module, extension, stages

import_error: str | None = None
build: dict[str, Any] = {}
# Of a build for the Hub, whose namespace has the module's name: _ops.py has imported it.
_hub = getattr(_ops, add_op_namespace_prefix("").removesuffix("::"), None)
try:
    # The import registers the ops.
    build = extension.load("fastwhiten_cpu") if _hub is None else extension.of_hub(_hub)
except ImportError as error:  # not built, for another platform, from other sources
    import_error = str(error)

if import_error is None:
    cuda_module.load(build["cuda"]) if _hub is None else cuda_module.use(build)
    for _name in stages.STAGES:
        torch.library.register_fake(add_op_namespace_prefix(_name))(stages.fake(_name))
        globals()[_name] = getattr(ops, _name)
