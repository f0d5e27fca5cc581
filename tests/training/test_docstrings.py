"""The examples in the docstrings of training/ are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import training

_MODULES = [
    module.name
    for module in pkgutil.walk_packages(training.__path__, "training.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", _MODULES)
def test_examples(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
