"""Which cases the emulator runs again in reversed order under the sanitizers."""

import pytest

from tests.helpers import tiers

AGAIN = "reversed, sanitized"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test that takes a ``backend``, run every pair of values again, in every tier.

    A sanitized kernel takes about ten times as long.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("backend") == AGAIN:
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    left_out = {item for cases in tests.values() for item in cases}
    for cases in tests.values():
        left_out -= {cases[index] for index in tiers.cover(list(map(tiers.values, cases)), 2)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
