"""The kernels of stages that touch every row, cutting few rows as if they were many.

One block sums all rows, run after run; products of rows have the large tiles.
"""

from __future__ import annotations

import pytest

from fastwhiten import backends
from tests.backends.test_stages import (  # noqa: F401 (collected here, with this backend)
    test_a_row_without_weight_may_lie_anywhere,
    test_statistics,
    test_statistics_with_a_large_mean,
)
from tests.backends.test_stages_apply import (  # noqa: F401 (likewise)
    test_apply,
    test_backward_apply,
    test_backward_reduce,
)
from tests.csrc.conftest import AGAIN
from tests.csrc.emulated_stages import MANY_ROWS, EmulatedStages
from tests.csrc.test_stages import (  # noqa: F401 (likewise)
    test_a_group_that_is_not_finite_is_nan_alone,
    test_half_inputs_are_rounded_once,
    test_wide_groups,
)

pytestmark = pytest.mark.emulated

RUNS = {
    "forward": EmulatedStages(limits=MANY_ROWS),
    AGAIN: EmulatedStages("reversed", True, limits=MANY_ROWS),
}


@pytest.fixture(params=RUNS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(backends.BACKENDS, "emulated", RUNS[request.param])
    return "emulated"
