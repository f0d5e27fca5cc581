"""The public functions and the layer: every test of ``tests/`` that names a backend, on the device.

Their tensors stay on the CPU; the stages move them to the device and back (``DeviceStages``), so
that all shapes, dtypes, layouts, spectra and transforms of those tests meet the device's kernels.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.gpu.device import ABSENT, REASON

if ABSENT:
    pytest.skip(REASON, allow_module_level=True)

# Not those of torch.compile and opcheck: what moves tensors cannot be traced (test_training.py).
MODULES = (
    "accuracy",
    "amp",
    "autograd",
    "determinism",
    "functional",
    "layout",
    "modules",
    "nonfinite",
    "shrinkage",
    "sides",
)
FIXTURES = {"accuracy": "option", "determinism": "_few_chunks"}

for _module, _name in FIXTURES.items():
    globals()[_name] = getattr(importlib.import_module(f"tests.test_{_module}"), _name)
for _module in MODULES:
    for _name, _test in vars(importlib.import_module(f"tests.test_{_module}")).items():
        if _name.startswith("test_") and "backend" in inspect.signature(_test).parameters:
            globals()[f"test_{_module}_{_name.removeprefix('test_')}"] = _test
