"""What was put into somebody's model, and how it comes out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from .modules import ChannelWhitening


class Change(NamedTuple):
    """A layer that was put into a model as ``parent.name``."""

    path: str  # of what it stands in front of or in place of
    layer: ChannelWhitening
    text: str  # says that
    parent: nn.Module
    name: str
    before: nn.Module | type[nn.Module]  # what was there; for an addition, the class of parent


class Changes:
    """Layers that were put into a model; :meth:`undo` takes them out again.

    :func:`fastwhiten.whiten_classifier_input` and :func:`fastwhiten.replace_batchnorm` return it;
    its text lists what they did.

    Attributes:
        layers: the layers by their paths.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        """Keep what was done."""
        self.layers = {change.path: change.layer for change in changes}
        self._changes = changes
        self._undone = False

    @property
    def path(self) -> str:
        """Path of the one layer; ValueError where there are more."""
        return self._only().path

    @property
    def layer(self) -> ChannelWhitening:
        """The one layer; ValueError where there are more."""
        return self._only().layer

    def _only(self) -> Change:
        if len(self._changes) != 1:
            raise ValueError(
                f"Changes: expected one layer, got {len(self._changes)}; look into .layers"
            )
        return self._changes[0]

    def undo(self) -> None:
        """Take the layers out: the very modules of before are in their places again.

        The layers stay with this object. A second call does nothing.

        Raises:
            RuntimeError: a layer is no longer where it was put; nothing is done then.
        """
        if self._undone:
            return
        for _, layer, _, parent, name, *_ in self._changes:
            found = getattr(parent, name, None)
            if found is not layer:
                raise RuntimeError(
                    f"Changes.undo: expected the layer {name!r} where it was put, got "
                    f"{type(found).__name__}; undo later changes of the model first"
                )
        for _, layer, _, parent, name, before in self._changes:
            if isinstance(before, nn.Module):
                setattr(parent, name, before.train(layer.training))
            else:
                delattr(parent, name)
                parent.__class__ = before
        self._undone = True

    def __repr__(self) -> str:
        """Return a line for every layer."""
        title = "Changes, undone:" if self._undone else "Changes:"
        lines = [f"  {c.path}: {c.layer} {c.text}" for c in self._changes]
        return "\n".join([title, *lines])
