"""A fixture that runs a test's fits in float32 and in bf16."""

from collections.abc import Iterator

import pytest

from vqlabel.codecs.precision import bf16_products


@pytest.fixture(params=["float32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Precision of the products of fits: emulated where the machine has no bf16."""
    with bf16_products(request.param == "bf16"):
        yield request.param
