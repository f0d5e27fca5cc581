"""Which cases of every test run: ``--tier check``, ``test`` or ``all``.

A test with several axes (parameters, parametrised fixtures) is written as their full product. The
tiers thin it: ``test`` keeps few cases in which every two values of two axes still meet, ``check``
few in which every value occurs, ``all`` keeps everything. A pair of values that the product leaves
out is not asked for, and a test with one axis keeps every case of it.

Beyond that, ``test`` leaves out what is marked ``full``, and thins what is marked ``slow`` to every
value once. ``check`` leaves out what is ``slow`` too, and of what is ``emulated`` or ``interpret``
takes the first case of each test that is marked ``smoke``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

STRENGTH = {"check": 1, "test": 2, "all": 0}
LEFT_OUT = {
    "check": {"full", "slow", "gpu"},
    "test": {"full"},
    "all": set(),
}
# In check, of a test that is marked smoke, one such case; of other tests none.
SMOKE = {"emulated", "interpret"}

Case = tuple[tuple[str, Hashable], ...]


def cover(cases: Sequence[Case], strength: int) -> list[int]:
    """Return the indices of few cases that hold every combination of ``strength`` values.

    Greedy: again and again the case that adds the most; of equals the one whose values were taken
    least often, and of these the first. Processes that run a share each agree on the result.

    Args:
        cases: the values of one case by axis, each with the axis's name.
        strength: how many axes a combination has; fewer where a case has fewer.

    Example:
        >>> cover([(("a", a), ("b", b)) for a in (0, 1) for b in (0, 1)], 1)
        [0, 3]
    """
    combinations = [set(itertools.combinations(case, min(strength, len(case)))) for case in cases]
    left = set().union(*combinations)
    taken: Counter[Any] = Counter()
    kept = []

    def gain(index: int) -> tuple[int, int, int]:
        before = sum(taken[value] for value in cases[index])
        return len(combinations[index] & left), -before, -index

    while left:
        best = max(range(len(cases)), key=gain)
        kept.append(best)
        left -= combinations[best]
        taken.update(cases[best])
    return sorted(kept)


def thin(items: list[pytest.Item], tier: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items that run in the tier, in their order, and those that do not."""
    if tier == "all":
        return items, []
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not _marks(item) & LEFT_OUT[tier]:
            by_test.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for cases in by_test.values():
        if tier == "check":
            smoke = [item for item in cases if _marks(item) & SMOKE]
            cases = [item for item in cases if item not in smoke]
            kept.update([item for item in smoke if "smoke" in _marks(item)][:1])
        strength = 1 if cases and "slow" in _marks(cases[0]) else STRENGTH[tier]
        kept.update(cases[index] for index in cover([values(item) for item in cases], strength))
    return [i for i in items if i in kept], [i for i in items if i not in kept]


def _marks(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


def values(item: pytest.Item) -> Case:
    """Return the case's values by axis; one that cannot be hashed stands for itself alone."""
    call: Any = getattr(item, "callspec", None)
    if call is None:
        return ()
    return tuple((axis, _hashable(value)) for axis, value in sorted(call.params.items()))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value).__name__, value  # or 1, 1.0 and True were one
