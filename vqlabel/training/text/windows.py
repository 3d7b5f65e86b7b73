"""Labels that are needed of documents -> parts of these documents that contain all tokens the labels depend on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """Tokens start : stop of a document, and the rows of it that are needed, ascending."""

    document: int
    start: int
    stop: int
    rows: NDArray[np.int64]


def windows(documents: NDArray[np.int64], rows: NDArray[np.int64], counts: NDArray[np.int64], reach: int) -> Iterator[Window]:
    """The windows around some rows, in their order; rows whose windows overlap share one.

    Args:
        documents: [n] ascending; rows: [n] of these documents, ascending within each.
        counts: [D] rows of every document.
        reach: tokens before token t and after token t + 1 that row t depends on.
    """
    apart = (np.diff(documents) != 0) | (np.diff(rows) > 2 * reach + 1)
    ends = np.append(np.flatnonzero(apart) + 1, len(rows))[: len(rows)]
    first = 0
    for end in ends.tolist():
        document, part = int(documents[first]), rows[first:end]
        start, stop = max(0, int(part[0]) - reach), min(int(counts[document]) + 1, int(part[-1]) + 2 + reach)
        yield Window(document, start, stop, part)
        first = end
