"""Names of stored dtypes, and their equivalents in NumPy and torch."""

import numpy as np
import pytest
import torch

from vqlabel.dtypes import LABEL_TYPES, numpy_type, stored_type, torch_type

NAMES = ("U8", "I8", "F16", "BF16", "F32", "F64", "U64")


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_torch_dtypes_of_a_name_have_the_same_size_and_that_name(name: str) -> None:
    assert numpy_type(name).itemsize == torch_type(name).itemsize
    assert stored_type(torch_type(name)) == name
    assert name == "BF16" or stored_type(numpy_type(name)) == name


def test_dtypes_are_little_endian_and_bf16_is_stored_as_its_bits() -> None:
    assert numpy_type("F16") == np.dtype("<f2") and numpy_type("U64") == np.dtype("<u8") and numpy_type("BF16") == np.dtype("<u2")
    assert torch_type("BF16") == torch.bfloat16 and set(LABEL_TYPES) < set(NAMES)


def test_a_dtype_that_cannot_be_stored_has_no_name() -> None:
    with pytest.raises(KeyError):
        stored_type(torch.complex64)
