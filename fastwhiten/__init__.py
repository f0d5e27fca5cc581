"""Exact whitening that trains: fused kernels for batch whitening and its gradient in PyTorch.

Notation, used in every file: ``N`` samples, ``C`` channels, ``G`` groups, ``D = C / G`` channels
per group, ``M`` rows (``N`` times the spatial size), ``T`` the accumulation dtype (float32;
float64 for float64 input or on request), ``p_n`` row weights that sum to 1, ``Xc`` centred rows,
``S = Xc^T diag(p) Xc + eps I = U diag(l) U^T``, ``s = sqrt(l)``.

Example:
    >>> import torch, fastwhiten
    >>> layer = fastwhiten.ChannelWhitening(16)
    >>> layer(torch.randn(64, 16)).shape
    torch.Size([64, 16])
"""

from .averaging import update_statistics
from .batchnorm import replace_batchnorm
from .classifier import whiten_classifier_input
from .folding import fold_into_linear
from .functional import (
    batch_statistics,
    matrix_power,
    symmetric_eigh,
    symmetric_eigh_sweeps,
    whiten,
    whitening_matrix,
)
from .modules import ChannelWhitening
from .whitener import Whitener

__version__ = "0.1.0"

__all__ = [
    "ChannelWhitening",
    "Whitener",
    "__version__",
    "batch_statistics",
    "fold_into_linear",
    "matrix_power",
    "replace_batchnorm",
    "symmetric_eigh",
    "symmetric_eigh_sweeps",
    "update_statistics",
    "whiten",
    "whiten_classifier_input",
    "whitening_matrix",
]
