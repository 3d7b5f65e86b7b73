"""Fields of labels <-> streams: counts, and runs of as many rows for a label as its count says. Numpy only.

Source: docs/format.md, "Documents".
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import CODES, COUNTS, CodecConfig
from vqlabel.errors import BadContainer

Fields = NDArray[np.unsignedinteger]


def counts_stream(config: CodecConfig) -> str:
    """Name of the stream that has one row per label."""
    return COUNTS if config.runs else CODES


def split_streams(config: CodecConfig, fields: Fields) -> dict[str, Fields]:
    """Fields [n, f] of labels -> the rows of every stream, by name; fields beyond a label's count are left out."""
    if not config.runs:
        return {CODES: fields}
    streams = {COUNTS: fields[:, : len(config.runs)]}
    for run in config.runs:
        used = _used(config, run.fields[0], fields[:, run.count])
        streams[run.stream] = np.stack([fields[:, columns][used] for columns in run.fields], 1)
    return streams


def join_streams(config: CodecConfig, streams: Mapping[str, Fields], where: str) -> Fields:
    """Inverse of `split_streams`: [n, f] uint32, 0 beyond a label's count.

    Args:
        where: the file and the document, for messages.

    Raises:
        BadContainer: a count exceeds its limit, or a stream has another number of rows than the counts add up to.
    """
    if not config.runs:
        return streams[CODES]
    counts = streams[COUNTS]
    fields = np.zeros((len(counts), len(config.widths)), np.uint32)
    fields[:, : len(config.runs)] = counts
    for run in config.runs:
        limit, largest = run.fields[0].stop - run.fields[0].start, int(counts[:, run.count].max(initial=0))
        total, rows = int(counts[:, run.count].sum(dtype=np.int64)), len(streams[run.stream])
        if largest > limit or total != rows:
            raise BadContainer(
                f"{where}: counts of {run.stream} up to {largest} add up to {total}; the limit is {limit}, and the file has {rows}: damaged "
                "or forged"
            )
        used = _used(config, run.fields[0], counts[:, run.count])
        for column, values in zip(run.fields, streams[run.stream].T, strict=True):
            fields[:, column][used] = values
    return fields


def _used(config: CodecConfig, columns: slice, counts: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """[n, columns] which fields of a run a label has."""
    return np.asarray(np.arange(columns.stop - columns.start) < counts[:, None])
