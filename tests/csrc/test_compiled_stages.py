"""The stages as nvcc compiles them, in every dtype, instruction by instruction."""

from __future__ import annotations

import os

import build_cuda
import pytest

from fastwhiten import backends
from tests.backends.test_stages import (  # noqa: F401 (collected here, with this backend)
    test_factor,
    test_factor_of_broken_groups,
    test_statistics,
    test_statistics_with_a_large_mean,
)
from tests.backends.test_stages_apply import (  # noqa: F401 (likewise)
    test_apply,
    test_backward_apply,
    test_backward_matrix,
    test_backward_reduce,
    test_sample_side,
    test_sample_statistics_in_double_precision,
)
from tests.csrc.compiled import CompiledStages
from tests.csrc.test_stages import (  # noqa: F401 (likewise)
    test_a_group_that_is_not_finite_is_nan_alone,
    test_half_inputs_are_rounded_once,
    test_intensity,
)

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.full,
    pytest.mark.skipif(build_cuda.find_toolkit(os.environ) is None, reason="there is no nvcc"),
]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(backends.BACKENDS, "emulated", CompiledStages())
    return "emulated"
