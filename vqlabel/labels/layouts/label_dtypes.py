"""The floating-point dtypes that labels of a dump may have, from NumPy and torch: "F16", "BF16", "F32" or "F64"."""

from typing import Any

import numpy as np

BF16 = np.dtype("V2")  # NumPy has no bfloat16; np.save writes such an array as two bytes of no type
NUMPY_TYPES = {"F16": np.dtype("<f2"), "BF16": BF16, "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
NARROWED_NOTE = "float64 is narrowed to float32"  # note of a source whose labels are read as F32 though stored as F64
_NUMPY_NAMES = {dtype.str[1:]: name for name, dtype in NUMPY_TYPES.items()}  # without the byte order
_TORCH_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def numpy_dtype_name(dtype: np.dtype[Any]) -> str | None:
    """ "F16", "BF16", "F32" or "F64" for a NumPy dtype of any byte order; None for other dtypes."""
    return _NUMPY_NAMES.get(dtype.str[1:])


def torch_dtype_name(dtype: object) -> str | None:
    """ "F16", "BF16", "F32" or "F64" for a torch.dtype or its name; None for other dtypes."""
    return _TORCH_NAMES.get(str(dtype).removeprefix("torch."))
