"""Which cases the emulator runs again in reversed order under the sanitizers."""

from collections.abc import Sequence

import pytest

AGAIN = "reversed, sanitized"
# A sanitized kernel takes about ten times as long. Of a test with many cases every thirteenth runs
# again, and every case with a value of an axis that no case before it has: each test and each value
# of each axis is met, whichever cases were asked for.
MANY, STRIDE = 20, 13


def thinned(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the cases of one test that run again."""
    if len(cases) <= MANY:
        return list(cases)
    kept: list[pytest.Item] = []
    met: set[tuple[str, str]] = set()
    for at, case in enumerate(cases):
        values = {(axis, repr(value)) for axis, value in case.callspec.params.items()}
        if at % STRIDE == 0 or not values <= met:
            kept.append(case)
            met |= values
    return kept


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out what runs again of the tests that take a ``backend``."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("backend") == AGAIN:
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    again = [item for cases in tests.values() for item in cases]
    kept = {item for cases in tests.values() for item in thinned(cases)}
    left_out = {item for item in again if item not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
