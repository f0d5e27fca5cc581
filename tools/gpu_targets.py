"""The targets that benchmarks of a GPU are compared with, and how each is read from the results.

Of forward + backward in float32 on an H100, everybody measured side by side. Nothing here imports
torch: an entry is what benchmarks/gpu_timing.py wrote, ``{"eager_us": ..., "graph_us": ...}``, or
``{"failed": ...}``, or ``{"not_measured": ...}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Measured = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


class Absent(Exception):
    """A time that a target needs is not in the results; the text says which and why."""


class Verdict(NamedTuple):
    """How a target stands.

    Attributes:
        text: the target.
        shown: what was measured, or why it could not be compared.
        held: whether it was reached; None where it could not be compared.
    """

    text: str
    shown: str
    held: bool | None


class Target(NamedTuple):
    """A target.

    Attributes:
        text: as in the table.
        figure: returns the measured figure.
        bound: what the figure is compared with.
        unit: of both.
        at_most: whether the figure has to be at most the bound, or at least.
    """

    text: str
    figure: Callable[[Measured], float]
    bound: float
    unit: str
    at_most: bool


def entry(measured: Measured, section: str, case: str, name: str) -> Mapping[str, Any]:
    """Return an entry that has times.

    Raises:
        Absent: there is none, or it says why not.
    """
    found = measured.get(section, {}).get(case, {}).get(name)
    if found is None:
        raise Absent(f"{name} of {case} was not measured")
    for reason in ("failed", "not_measured"):
        if reason in found:
            raise Absent(f"{name} of {case}: {reason.replace('_', ' ')}: {found[reason]}")
    return found


def best(found: Mapping[str, Any]) -> float:
    """Return the faster way's microseconds: as a CUDA graph where it can be one."""
    return float(min(found[way] for way in ("graph_us", "eager_us") if way in found))


def times(section: str, case: str, name: str) -> Callable[[Measured], float]:
    """Return how a best time is found."""
    return lambda measured: best(entry(measured, section, case, name))


def eager(section: str, case: str, name: str) -> Callable[[Measured], float]:
    """Return how the time of eager calls is found."""
    return lambda measured: float(entry(measured, section, case, name)["eager_us"])


def ratio(
    one: Callable[[Measured], float], other: Callable[[Measured], float]
) -> Callable[[Measured], float]:
    """Return how the ratio of two times is found."""
    return lambda measured: one(measured) / other(measured)


HEADLINE = "(128, 64)"
STEP = ("training step", "ResNet-32")
TARGETS = (
    Target(
        f"{HEADLINE}: at most 200 us",
        times("whole", HEADLINE, "fused"),
        200.0,
        "us",
        at_most=True,
    ),
    Target(
        f"{HEADLINE}: at least 10 times faster than eigh + autograd",
        ratio(times("whole", HEADLINE, "eager"), times("whole", HEADLINE, "fused")),
        10.0,
        "times",
        at_most=False,
    ),
    # Like with like: both as eager calls, launches and Python included.
    Target(
        f"{HEADLINE}: no slower than IterNorm T=5, both eager",
        ratio(eager("whole", HEADLINE, "fused"), eager("whole", HEADLINE, "iternorm")),
        1.0,
        "times its time",
        at_most=True,
    ),
    Target(
        "8 groups of 64: at most 1.3 times one's time",
        ratio(times("whole", "(512, 8 x 64)", "fused"), times("whole", "(512, 64)", "fused")),
        1.3,
        "times",
        at_most=True,
    ),
    Target(
        "(256, 2048): at least 8 times faster than eigh + autograd",
        ratio(times("whole", "(256, 2048)", "eager"), times("whole", "(256, 2048)", "fused")),
        8.0,
        "times",
        at_most=False,
    ),
    Target(
        "eigensolver of order 128: faster than the library's, or left to it",
        ratio(
            times("eigensolvers", "1 x 128", "native"), times("eigensolvers", "1 x 128", "library")
        ),
        1.0,
        "times its time",
        at_most=True,
    ),
    Target(
        "ResNet-32 step with whitening: at most 1.05 times one without",
        ratio(times(*STEP, "with"), times(*STEP, "without")),
        1.05,
        "times",
        at_most=True,
    ),
)


def verdicts(measured: Measured) -> list[Verdict]:
    """Return how every target stands, in order; none is left out."""
    found = []
    for target in TARGETS:
        try:
            figure = target.figure(measured)
        except Absent as reason:
            found.append(Verdict(target.text, str(reason), None))
            continue
        held = figure <= target.bound if target.at_most else figure >= target.bound
        found.append(Verdict(target.text, f"{figure:.3g} {target.unit}", held))
    return found
