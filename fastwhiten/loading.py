"""Layers from elsewhere: a state_dict that does not fit, and how it is converted; a Whitener."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .modules import ChannelWhitening
    from .whitener import Whitener


class Missing(str):
    """A missing key that says more in the error's text, which ``strict=False`` does not raise."""

    hint: str = ""

    def __new__(cls, name: str, prefix: str, hint: str) -> Missing:
        """Return ``name``, with ``hint`` if it is that of a running covariance or matrix."""
        key = super().__new__(cls, name)
        if name in (prefix + "running_cov", prefix + "running_matrix"):
            key.hint = f"\n\t{hint}\n\t"
        elif isinstance(name, Missing):
            key.hint = name.hint
        return key

    def __format__(self, specification: str) -> str:
        """Return the key and the hint."""
        return super().__format__(specification) + self.hint


def explain(layer: ChannelWhitening, state: Mapping[str, Any], prefix: str) -> str | None:
    """Return how to convert the entries of ``state`` below ``prefix``, None where nothing is known.

    Known are the state of ``nn.BatchNorm``, and that of a layer with another ``running`` or
    ``groups``.
    """
    if layer.running_mean is None:
        return None
    wanted = "running_cov" if layer.running == "covariance" else "running_matrix"
    unused = "running_matrix" if layer.running == "covariance" else "running_cov"
    size = layer.num_features // layer.groups
    where = f"ChannelWhitening {prefix[:-1]!r}" if prefix else "ChannelWhitening"
    if prefix + wanted not in state and prefix + "running_var" in state:
        variances = f"state.pop({prefix + 'running_var'!r}).reshape({layer.groups}, {size})"
        covariance = f"torch.diag_embed({variances})"
        if wanted == "running_matrix":
            covariance = f"torch.diag_embed(({variances} + eps).rsqrt())"
        return (
            f"{where}: this is the state of a batch normalisation, which knows no covariances; "
            f"state[{prefix + wanted!r}] = {covariance} makes evaluation equal to it. Then train, "
            "or call fastwhiten.update_statistics(model, loader)"
        )
    if prefix + wanted not in state and prefix + unused in state:
        running = "matrix" if layer.running == "covariance" else "covariance"
        made = (
            f"state[{prefix + wanted!r}] = fastwhiten.whitening_matrix(state.pop("
            f"{prefix + unused!r}), kind={layer.kind!r}, eps={layer.eps})"
            if wanted == "running_matrix"
            else "the covariance cannot be had from averaged matrices: load the rest with "
            "strict=False and call fastwhiten.update_statistics(model, loader)"
        )
        return f"{where}: this is the state of a layer with running={running!r}; {made}"
    square = state.get(prefix + wanted)
    shape = list(getattr(square, "shape", ()))
    if len(shape) != 3 or shape[0] * shape[1] != layer.num_features or shape[0] == layer.groups:
        return None
    name = repr(prefix + wanted)
    advice = f"construct it with groups={shape[0]}"
    if layer.groups % shape[0] == 0 and wanted == "running_cov":
        advice += (
            f", or keep the blocks on the diagonal: state[{name}] = torch.stack([b for m in "
            f"state[{name}] for b in torch.stack(m.split({size}, 1)).reshape(-1, {size}, {size})"
            f"[::{shape[1] // size + 1}]])"
        )
    elif shape[0] % layer.groups == 0:
        advice += (
            f", or, with no covariance between those groups: state[{name}] = torch.stack("
            f"[torch.block_diag(*m) for m in state[{name}].split({shape[0] // layer.groups})])"
        )
    return f"{where}: this is the state of a layer with groups={shape[0]}; {advice}"


def add_hints(
    layer: ChannelWhitening,
    state: Mapping[str, Any],
    prefix: str,
    before: int,
    missing: list[str],
    errors: list[str],
) -> None:
    """Add what :func:`explain` says to the errors of a load, or to the keys that it misses.

    Args:
        layer: the layer that was loaded.
        state: where from.
        prefix: of the layer's entries.
        before: how many errors there were before.
        missing: keys that were missed.
        errors: texts, raised in any case; missing keys are with ``strict=True`` only.
    """
    hint = explain(layer, state, prefix)
    if hint is not None and len(errors) > before:
        errors.append(hint)
    elif hint is not None:
        missing[:] = [Missing(name, prefix, hint) for name in missing]


@torch.no_grad()
def from_whitener(
    layer_type: type[ChannelWhitening], whitener: Whitener, options: dict[str, Any]
) -> ChannelWhitening:
    """Return what :meth:`fastwhiten.ChannelWhitening.from_whitener` does.

    Raises:
        ValueError: a kind that the layer cannot be trained on with, or a whitener without rows.
    """
    mean, matrix = whitener.mean_, whitener.whitening_
    if whitener.kind not in ("zca", "cholesky"):
        raise ValueError(
            "ChannelWhitening.from_whitener: expected a Whitener of kind 'zca' or 'cholesky', got "
            f"{whitener.kind!r}, which no layer trains on with; for a fixed map take a "
            "torch.nn.Linear with weight whitening_.T and bias -mean_ @ whitening_"
        )
    estimated = isinstance(whitener.shrinkage, str)
    is_regular = whitener.rank_ == len(mean) and whitener.eps > 0 and not estimated
    layer = layer_type(
        len(mean),
        kind=whitener.kind,
        eps=whitener.eps or 1e-3,  # of training on
        shrinkage=whitener.shrinkage,
        running="covariance" if is_regular else "matrix",
        **{"dtype": torch.float64, "device": mean.device, **options},
    )
    assert layer.running_mean is not None and layer.num_batches_tracked is not None
    layer.running_mean.copy_(mean)
    layer._running_square()[0].copy_(whitener.covariance_ if is_regular else matrix)
    layer.num_batches_tracked.fill_(1)
    return layer.eval()
