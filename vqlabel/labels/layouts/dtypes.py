"""The floating-point types of stored labels: their code in an About, their NumPy type and their name in torch.

One table for all layouts.
"""

from typing import Any

import numpy as np

BF16 = np.dtype("V2")  # NumPy has no bfloat16; np.save writes such an array as two bytes of no type
NUMPY_TYPES = {"F16": np.dtype("<f2"), "BF16": BF16, "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
NARROWED = "float64 is narrowed to float32"  # note of a source whose labels are read as F32 though stored as F64
_CODES = {dtype.str[1:]: code for code, dtype in NUMPY_TYPES.items()} | {name: code for code, name in TORCH_NAMES.items()}


def numpy_code(dtype: np.dtype[Any]) -> str | None:
    """ "F16", "BF16", "F32" or "F64" for a NumPy type of any byte order; None for other types."""
    return _CODES.get(dtype.str[1:])


def torch_code(dtype: object) -> str | None:
    """ "F16", "BF16", "F32" or "F64" for a torch.dtype or its name; None for other types."""
    return _CODES.get(str(dtype).removeprefix("torch."))
