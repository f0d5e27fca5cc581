"""Every stage on the device: the tests of ``tests/backends``, with their tolerances."""

from tests.backends.test_stages import *  # noqa: F403
from tests.backends.test_stages_apply import *  # noqa: F403
