"""A dump of each layout, for laws that all of them share."""

from pathlib import Path

import pytest
from text_dumps import LAYOUTS, Dump


@pytest.fixture(params=LAYOUTS)
def dump(request: pytest.FixtureRequest, tmp_path: Path) -> Dump:
    """A dump of each layout."""
    return LAYOUTS[request.param](tmp_path)
