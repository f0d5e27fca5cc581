"""Every stage on the device: the tests of ``tests/backends``, with their tolerances."""

import pytest

from tests.gpu.device import ABSENT, REASON

if ABSENT:
    pytest.skip(REASON, allow_module_level=True)

from tests.backends.test_stages import *  # noqa: F403
from tests.backends.test_stages_apply import *  # noqa: F403
from tests.backends.test_whole_passes import *  # noqa: F403
