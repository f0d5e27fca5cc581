"""A trained model for use without this package: safetensors, torch.export, ONNX."""

from training.export.fold import fold_whitening, freeze_whitening
from training.export.formats import load_safetensors

__all__ = [
    "fold_whitening",
    "freeze_whitening",
    "load_safetensors",
]
