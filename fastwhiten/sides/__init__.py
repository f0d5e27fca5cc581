"""Two ways to whiten the same batch, and which one serves which shape.

The *feature* side decomposes the D x D covariance and works through the whitening matrix: 9 M D^2 +
10 D^3 operations, forward and backward, and an eigenproblem of order D. The *sample* side
decomposes the M x M Gram matrix of the rows: 13 M^2 D and one of order M, so less up to M = D,
where measured times meet (64 x 64: .98 and 1.06 of the feature side's with AVX-512 and AVX2, 128 x
128: 1.11 and .88, 512 x 512: .86 and .83). Each file has a side's ``torch.autograd.Function``s and
what surrounds them: a forward returns the whitened rows and, not differentiable, what its backward
and the running statistics need; a backward is a Function of its own, whose derivative is that of
:mod:`fastwhiten.composite`.
"""

from __future__ import annotations

from torch import Tensor

from ..backends import reference
from ..distributed import Group, Slots, can_look, slots
from . import feature, sample
from .batch import Batch, Options, Whitened

__all__ = ["Batch", "Options", "Whitened", "choose", "choose_over", "whiten_on"]


def choose(x: Tensor, options: Options) -> str:
    """Return ``"feature"`` or ``"sample"`` for a batch ``[N, C, *spatial]``."""
    rows, size = x.numel() // x.shape[1], x.shape[1] // options.groups
    dual = options.kind == reference.ZCA and options.batch_weight == 1.0
    return "sample" if dual and rows <= size else "feature"


def choose_over(
    group: Group, x: Tensor, sample_weight: Tensor | None, options: Options
) -> tuple[str, Slots | None]:
    """Choose for the rows of all processes of ``group``; what the sample side has to know of them.

    The number of all rows takes a collective that the host waits for: so only for a kind and a size
    that the sample side may serve, and for tensors of the CPU. Every process decides alike.
    """
    size = x.shape[1] // options.groups
    possible = options.kind == reference.ZCA and options.batch_weight == 1.0 and size >= group.size
    if not (possible and can_look(x)):
        return "feature", None
    found = slots(x, sample_weight, group)
    return ("sample", found) if found.total <= size else ("feature", None)


def whiten_on(side: str, batch: Batch) -> Whitened:
    """Whiten ``batch`` on the side that :func:`choose` named."""
    return sample.whiten(batch) if side == "sample" else feature.whiten(batch)
