"""The stages of ``fastwhiten.backends.reference`` by the emulated CUDA kernels.

The functions have the names, arguments and results of the table of the stages, so that the tests of
any backend run on them. ``order`` and ``sanitize`` say how the threads are run, ``limits`` that few
rows are to be cut as many are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastwhiten.backends import reference, stages
from tests.csrc.emulation import Probe, run

# Of the chunks that rows are cut into, and of the blocks from which on tiles are large.
MANY_ROWS = (("most_chunks", 1), ("enough_blocks", 1))


@dataclass(frozen=True)
class EmulatedStages:
    """A backend whose kernels run in the emulator."""

    order: str = "forward"
    sanitize: bool | str = False
    probe: Probe | None = None
    limits: tuple[tuple[str, int], ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Return the stage of that name."""
        if name not in stages.STAGES:
            raise AttributeError(name)
        return functools.partial(self._stage, name)

    def _stage(self, name: str, *arguments: Any, **more: Tensor) -> Any:
        call = stages.bind(name, arguments)
        out = self._run(name, call, **more)
        found = tuple(out[f"out_{n}"].reshape(shape) for n, shape, _ in stages.results(name, call))
        return found if len(found) > 1 else found[0]

    def _run(self, name: str, call: stages.Call, **more: Any) -> dict[str, Tensor]:
        """Hand the driver what the table names, what it names more, and the sizes."""
        given = {n: v for n, v in call.given.items() if not isinstance(v, Tensor) or v.numel()}
        if "out_dtype" in given:
            given["out_dtype"] = torch.empty(0, dtype=given["out_dtype"])
        s = call.sizes
        sizes = {"samples": s.get("N", s["M"] if "M" in s else 0), "channels": s["C"]}
        sizes |= {"length": s.get("L", 1), "groups": s["G"], "width": s["D"]}
        given |= {"double_precision": int(call.dtypes["T"] == torch.float64), f"stage:{name}": 1}
        return self._driver("stages", **(given | sizes | dict(self.limits) | more))

    def _driver(self, driver: str, **arguments: Any) -> dict[str, Tensor]:
        settings = {"order": self.order, "sanitize": self.sanitize, "probe": self.probe}
        return run(driver, **settings, **arguments)

    def blended(self, x, row_weight, groups, running, batch_weight):
        """Return what the statistics stage leaves for the factor stage."""
        double = running.dtype == torch.float64
        call = stages.bind("statistics", (x, row_weight, groups, double))
        more = {"running_covariance": running, "batch_weight": batch_weight}
        return self._run("statistics", call, **more)["out_blended"].reshape(running.shape)

    def factor(self, *arguments: Any, given: tuple[Tensor, Tensor] | None = None):
        """Factor; ``given`` is an eigensystem that was computed elsewhere."""
        more = {} if given is None else dict(zip(("spectrum", "basis"), given, strict=True))
        return self._stage("factor", *arguments, **more)

    def eigh(self, a, start=None):
        """Decompose, as far as our own eigensolver goes."""
        size = a.shape[-1]
        if size > (64 if a.dtype == torch.float64 else 128):
            return reference.eigh(a)  # left to the library
        out = self._driver("eigh", a=a, start=start, B=a.shape[0], D=size)
        return out["values"].reshape(a.shape[:-1]), out["vectors"].reshape(a.shape)
