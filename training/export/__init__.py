"""A trained model for use without this package: safetensors, torch.export, ONNX."""

from training.export.fold import affine_map, fold_whitening, freeze_whitening
from training.export.formats import load_safetensors

__all__ = [
    "affine_map",
    "fold_whitening",
    "freeze_whitening",
    "load_safetensors",
]
