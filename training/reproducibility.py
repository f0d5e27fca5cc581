"""Seeds and determinism: one seed per source of randomness, all derived from one number."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from training.config import SeedConfig

# The position is part of the derivation: append, never reorder.
_PURPOSES = ("split", "sampler", "augmentation", "initialisation")


@dataclass(frozen=True)
class Seeds:
    """The resolved seed of every source of randomness (see `SeedConfig`)."""

    split: int
    sampler: int
    augmentation: int
    initialisation: int


def derive_seed(*entropy: int) -> int:
    """Mix integers >= 0 to one 32-bit seed (numpy's SeedSequence: stable across platforms)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def resolve_seeds(seed: int, seeds: SeedConfig) -> Seeds:
    """Fill the seeds that are null with ones derived from ``seed`` and the purpose."""
    given = asdict(seeds)
    resolved = {
        purpose: given[purpose] if given[purpose] is not None else derive_seed(seed, position)
        for position, purpose in enumerate(_PURPOSES)
    }
    return Seeds(**resolved)


def generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    """Return a generator that depends on the integers alone, for instance (seed, epoch)."""
    return torch.Generator(device=device).manual_seed(derive_seed(*entropy))


@contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Initialise parameters inside from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators as tensors and plain containers."""
    numpy_state: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = numpy_state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_states` returned; a GPU's state only on a GPU."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = state["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def seeded_globals(device: torch.device, *entropy: int) -> Iterator[None]:
    """Seed the global generators inside (dropout draws from them); restore their states after.

    Args:
        device: That trains; the generator of a GPU is seeded as well.
        entropy: Integers >= 0, for instance (seed, rank).
    """
    before = random_states(device)
    seed = derive_seed(*entropy)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before, device)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use this many CPU threads inside; null leaves its choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside, and restore the setting afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        # cuBLAS reads this when its first handle is made; without it torch raises on CUDA.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
