"""Base of layers whose training statistics can be those of a process group."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from . import distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SyncModule(nn.Module):
    """A layer with the attribute ``process_group``: None, ``"world"`` or a ProcessGroup."""

    process_group: ProcessGroup | str | None = None
    # Attributes that are no state: copies begin without.
    not_copied: tuple[str, ...] = ()

    @classmethod
    def convert_sync(
        cls, module: nn.Module, process_group: ProcessGroup | str | None = "world"
    ) -> nn.Module:
        """Set the process group of every ChannelWhitening layer in ``module``, in place.

        Like ``nn.SyncBatchNorm.convert_sync_batchnorm``; None ends synchronisation.

        Args:
            module: a layer or a model that contains some; returned.
            process_group: as in the constructor.

        Raises:
            TypeError, ValueError: ``process_group`` is none; see :func:`fastwhiten.whiten`.

        Example:
            >>> import torch, fastwhiten
            >>> model = torch.nn.Sequential(fastwhiten.ChannelWhitening(8))
            >>> fastwhiten.ChannelWhitening.convert_sync(model)[0].process_group
            'world'
        """
        distributed.check_process_group("ChannelWhitening.convert_sync", process_group)
        for layer in module.modules():
            if isinstance(layer, cls):
                layer.process_group = process_group
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncModule:
        """Copy the layer; a ProcessGroup object cannot be copied, so the copy shares it."""
        memo[id(self.process_group)] = self.process_group
        layer = self.__class__.__new__(self.__class__)
        memo[id(self)] = layer
        layer.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return layer

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of; a pickled layer too."""
        return {k: value for k, value in self.__dict__.items() if k not in self.not_copied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become what :meth:`__getstate__` has described."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start_anew()

    def _start_anew(self) -> None:
        """Set the attributes that no copy shares."""

    def _replicate_for_data_parallel(self) -> SyncModule:
        replica: SyncModule = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._start_anew()
        return replica
