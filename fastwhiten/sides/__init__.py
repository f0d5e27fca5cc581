"""Three ways to whiten the same batch, and which one serves which shape.

The *feature* side decomposes the D x D covariance and works through the whitening matrix. The
*sample* side decomposes the M x M Gram matrix of the rows: smaller when M < D, and with fewer
products when M = D. In the *eigenbasis* the feature side's matrix products shrink where D is large
and M is not much larger. Each file has a side's ``torch.autograd.Function``s and what surrounds
them: a forward returns the whitened rows and, not differentiable, what its backward and the running
statistics need; a backward is a Function of its own, whose derivative is that of
:mod:`fastwhiten.composite`.
"""

from __future__ import annotations

from torch import Tensor

from ..backends import reference
from ..distributed import Group, Slots, can_look, slots
from . import eigenbasis, feature, sample
from .batch import Batch, Options, Whitened

__all__ = ["Batch", "Options", "Whitened", "choose", "choose_over", "whiten_on"]

# The feature side costs about 9 M D^2 + 10 D^3 operations, the eigenbasis 13 M D^2: less while
# M < 2.5 D. Below this width its separate operations cost more than the products they save.
EIGENBASIS_SIZE = 256
EIGENBASIS_ROWS_PER_CHANNEL = 2.5


def choose(x: Tensor, options: Options) -> str:
    """Return ``"feature"``, ``"sample"`` or ``"eigenbasis"`` for a batch ``[N, C, *spatial]``."""
    if options.kind != reference.ZCA:
        return "feature"
    rows, size = x.numel() // x.shape[1], x.shape[1] // options.groups
    if rows <= size and options.batch_weight == 1.0:
        return "sample"
    # The reference backend keeps to the formulas that specify it.
    if options.backend != "reference" and size >= EIGENBASIS_SIZE:
        return "eigenbasis" if rows < EIGENBASIS_ROWS_PER_CHANNEL * size else "feature"
    return "feature"


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
    if side == "sample":
        return sample.whiten(batch)
    return eigenbasis.whiten(batch) if side == "eigenbasis" else feature.whiten(batch)
