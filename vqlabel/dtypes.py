"""Stored types by safetensors' names ("F16") <-> NumPy's and torch's types. Loads torch only when it is asked for."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_NAMES = {  # safetensors' name -> the name that NumPy (but for bfloat16) and torch share
    "U8": "uint8", "I8": "int8", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "U64": "uint64",
}  # fmt: skip
LABEL_TYPES = ("F16", "BF16", "F32")  # of labels in a dump (docs/format.md, `vql.label`)


def numpy_type(name: str) -> "np.dtype[np.generic]":
    """Little-endian NumPy type of a stored type; bf16, which NumPy lacks, as its bits in uint16.

    Raises:
        KeyError: the name is unknown.
    """
    return np.dtype("uint16" if name == "BF16" else _NAMES[name]).newbyteorder("<")


def torch_type(name: str) -> "torch.dtype":
    """Torch's type of a stored type.

    Raises:
        KeyError: the name is unknown.
    """
    import torch

    dtype: torch.dtype = getattr(torch, _NAMES[name])
    return dtype


def stored_type(dtype: "np.dtype[np.generic] | torch.dtype") -> str:
    """safetensors' name of a NumPy or torch type.

    Raises:
        KeyError: the type is not stored.
    """
    return _STORED[str(dtype).removeprefix("torch.")]


_STORED = {name: stored for stored, name in _NAMES.items()}
