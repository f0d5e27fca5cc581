"""The namespace of all operators, in one place.

The compiled modules have it from csrc/common/library.h. In builds for the Hugging Face Hub,
kernel-builder writes a file of this name with these two names and a namespace of each build's own,
so that several can live in one process.
"""

import torch

ops = torch.ops.fastwhiten


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the full name of an operator."""
    return f"fastwhiten::{op_name}"
