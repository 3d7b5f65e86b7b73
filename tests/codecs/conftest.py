"""Fits in both precisions, on every machine."""

from collections.abc import Iterator

import pytest

from vqlabel.codecs.precision import bf16_products


@pytest.fixture(params=["float32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the products of the fits in a test."""
    with bf16_products(request.param == "bf16"):
        yield request.param
