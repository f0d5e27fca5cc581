"""Batch samplers: plain arguments, torch and numpy alone.

`InstanceSampler`, and `ScheduledSampler` of a `B3RSStream` or a `ClasswiseStream`. To add one: a
stream (or a class of its own) and a line in `build.py`.
"""

from __future__ import annotations

from training.samplers.b3rs import B3RSStream
from training.samplers.base import (
    MIN_ROWS,
    Batch,
    BatchKind,
    BatchSampler,
    batch_bounds,
    check_world_size,
    rank_rows,
)
from training.samplers.build import build_sampler
from training.samplers.classwise import (
    ClasswiseStream,
    class_balanced,
    progressive,
    square_root,
)
from training.samplers.cursor import PlanCursor
from training.samplers.instance import InstanceSampler
from training.samplers.scheduled import Schedule, ScheduledSampler

__all__ = [
    "MIN_ROWS",
    "B3RSStream",
    "Batch",
    "BatchKind",
    "BatchSampler",
    "ClasswiseStream",
    "InstanceSampler",
    "PlanCursor",
    "Schedule",
    "ScheduledSampler",
    "batch_bounds",
    "build_sampler",
    "check_world_size",
    "class_balanced",
    "progressive",
    "rank_rows",
    "square_root",
]
