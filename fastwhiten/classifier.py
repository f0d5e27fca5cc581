"""Whitening in front of the classifier of a model that somebody else wrote."""

from __future__ import annotations

import functools
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .changes import Change, Changes
from .modules import ChannelWhitening

CALLER = "whiten_classifier_input"
NAME = "whitening"  # of the layer, as a module of the classifier

# Where models of torchvision and Hugging Face keep their classifier; timm's say it themselves.
ATTRIBUTES = ("fc", "head", "heads", "classifier", "classification_head", "score", "logits_proj")


def whiten_classifier_input(
    model: nn.Module, *, classifier: str | None = None, **options: Any
) -> Changes:
    """Put a :class:`ChannelWhitening` in front of a model's classifier, in place.

    Where Zhang, "Covariance-corrected Whitening Alleviates Network Degeneration on Imbalanced
    Classification", arXiv 2408.17197, whitens.

    The classifier, an ``nn.Linear`` or a subclass (or a 1 x 1 ``nn.Conv2d``), stays the object that
    it is, of a subclass of its class with a submodule ``whitening``, as ``torch.nn.utils
    .parametrize`` does it. So its ``weight``, ``bias``, ``in_features`` and hooks, the keys of its
    parameters in the ``state_dict``, and an optimizer that holds them are as before. New keys are
    ``<path>.whitening.running_mean``, ``running_cov`` and ``num_batches_tracked`` (``weight`` and
    ``bias``, with ``affine``): before a state with them is loaded, the layer has to be put in.

    Args:
        model: of torchvision's, timm's or Hugging Face's style: the classifier is what
            ``model.get_classifier()`` returns, else the last linear layer of the one attribute
            among ``fc``, ``head``, ``heads``, ``classifier``, ``classification_head``, ``score``
            and ``logits_proj`` that has any.
        classifier: the path of the linear layer, where another is meant: ``"module.fc"``.
        options: of :class:`ChannelWhitening`. ``channel_dim`` is the dimension that the classifier
            acts on (-1, of a convolution 1), so that a token classifier's ``[N, L, C]`` is whitened
            over all N L tokens, padding too. ``device`` and the mode are the classifier's, and
            ``dtype`` is, at least float32.

    Returns:
        :class:`fastwhiten.changes.Changes`, with ``path``, ``layer`` and ``undo()``; its text says
        what was done.

    Raises:
        ValueError: no classifier, more than one (the text lists the linear layers), one with a
            whitening, or one whose ``forward`` was replaced. Options as in
            :class:`ChannelWhitening`.

    Example:
        Trained, the layer folds into the classifier (:func:`fold_into_linear`):

        >>> import torch, fastwhiten
        >>> class Model(torch.nn.Sequential):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.fc = torch.nn.Linear(10, 8), torch.nn.Linear(8, 3)
        >>> model, x = Model(), torch.randn(64, 10)
        >>> change = fastwhiten.whiten_classifier_input(model, momentum=None)
        >>> change.path, change.layer.num_features
        ('fc', 8)
        >>> _ = model(x)
        >>> expected = model.eval()(x)
        >>> change.undo()
        >>> model.fc = fastwhiten.fold_into_linear(change.layer, model.fc)
        >>> torch.allclose(model(x), expected, atol=1e-4)
        True
    """
    path = _find(model) if classifier is None else classifier
    linear = dict(model.named_modules(remove_duplicate=False)).get(path)
    if linear is None or not is_linear(linear):
        got = "no such module" if linear is None else type(linear).__name__
        raise ValueError(
            f"{CALLER}: expected classifier={path!r} to be the path of a linear layer, got {got}; "
            f"{_candidates(model)}"
        )
    if isinstance(linear, WhitenedInput):
        raise ValueError(
            f"{CALLER}: expected a classifier without whitening, got {path!r}, whose input is "
            "whitened already; undo() that first"
        )
    if "forward" in vars(linear):
        raise ValueError(
            f"{CALLER}: expected {path!r} to have its class's forward, got one of its own, which "
            "would pass the whitening over; put whitening in before what replaces forward "
            "(accelerate's dispatch, say)"
        )
    text, before = f"in front of {linear}", type(linear)
    features, channel_dim = _input(linear)
    factory = {
        "device": linear.weight.device,
        "dtype": torch.promote_types(linear.weight.dtype, torch.float32),
    }
    layer = ChannelWhitening(features, **{"channel_dim": channel_dim, **factory, **options})
    whitened: Any = _whitened(before)  # type: ignore[arg-type]
    linear.__class__ = whitened
    linear.add_module(NAME, layer.train(linear.training))
    return Changes([Change(path, layer, text, linear, NAME, before)])


class WhitenedInput(nn.Module):
    """In front of a linear layer's class: what comes in is whitened.

    Compiled code notices another class; it would not notice a hook.
    """

    whitening: nn.Module

    def forward(self, input: Tensor) -> Any:
        """Whiten, and go on to the linear layer."""
        return super().forward(self.whitening(input))

    def __reduce__(self) -> Any:
        """Copy and pickle by the class of before: that of now has no name in a module."""
        return _new, (type(self).__bases__[1],), vars(self)


@functools.cache
def _whitened(before: Any) -> Any:
    return type(f"Whitened{before.__name__}", (WhitenedInput, before), {"__module__": __name__})


def _new(before: type[nn.Module]) -> Any:
    made = _whitened(before)  # type: ignore[arg-type]
    return made.__new__(made)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Return whether the module acts on channels alone."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _input(linear: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """Return the number of channels that a linear layer takes, and their dimension."""
    if isinstance(linear, nn.Conv2d):
        return linear.in_channels, 1
    return linear.in_features, -1


def _find(model: nn.Module) -> str:
    """Return the path of the classifier.

    Raises:
        ValueError: none is known, or more than one.
    """
    get_classifier: Any = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        answer, where = get_classifier(), "get_classifier()"
        found = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    else:
        named = {name: getattr(model, name, None) for name in ATTRIBUTES}
        found = [part for part in named.values() if isinstance(part, nn.Module)]
        where = f"the attributes {', '.join(ATTRIBUTES)}"
    parts = [[m for m in p.modules() if is_linear(m)] for p in found if isinstance(p, nn.Module)]
    linears = [part[-1] for part in parts if part]
    paths: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    if len(linears) != 1 or id(linears[0]) not in paths:
        raise ValueError(
            f"{CALLER}: expected one classifier in {where}, got "
            f"{[paths.get(id(m), type(m).__name__) for m in linears]}; {_candidates(model)}"
        )
    return paths[id(linears[0])]


def _candidates(model: nn.Module) -> str:
    """Return what to pass as ``classifier``; the last ones are the likely ones."""
    names = [path for path, module in model.named_modules() if is_linear(module)]
    listed = ", ".join(["..."] * (len(names) > 8) + names[-8:]) or "none"
    return f"pass classifier=, the path of one of the model's linear layers: {listed}"
