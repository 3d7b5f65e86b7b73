"""Fields of labels <-> streams: counts, and runs of as many rows for a label as its count says. Numpy only.

Source: docs/format.md, "Documents".
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import CODES, COUNTS, CodecConfig, Run

Fields = NDArray[np.unsignedinteger]


def counts_stream(config: CodecConfig) -> str:
    """Name of the stream that has one row per label."""
    return COUNTS if config.runs else CODES


def split_streams(config: CodecConfig, fields: Fields) -> dict[str, Fields]:
    """Fields [n, f] of labels -> the rows of every stream, by name; fields beyond a label's count are left out."""
    if not config.runs:
        return {CODES: fields}
    streams = {COUNTS: fields[:, : len(config.count_limits)]}
    for run in config.runs:
        used = stored_columns(run, streams[COUNTS])
        streams[run.stream] = np.stack([fields[:, columns][used] for columns in run.fields], 1)
    return streams


def join_streams(config: CodecConfig, streams: Mapping[str, Fields]) -> Fields:
    """Inverse of `split_streams`: [n, f] uint32, 0 beyond a label's count. Counts and rows agree: see `run_lengths`."""
    if not config.runs:
        return streams[CODES]
    counts = streams[COUNTS]
    fields = np.zeros((len(counts), len(config.widths)), np.uint32)
    fields[:, : len(config.count_limits)] = counts
    for run in config.runs:
        used = stored_columns(run, counts)
        for column, values in zip(run.fields, streams[run.stream].T, strict=True):
            fields[:, column][used] = values
    return fields


def run_lengths(config: CodecConfig, counts: Fields) -> NDArray[np.int64]:
    """[n, runs] rows of each label in each run, from its counts [n, c]."""
    lengths = [np.clip(counts[:, run.count].astype(np.int64) - run.first, 0, run.columns) for run in config.runs]
    return np.stack(lengths, 1) if lengths else np.empty((len(counts), 0), np.int64)


def stored_columns(run: Run, counts: Fields) -> NDArray[np.bool_]:
    """[n, columns] which fields of a run the labels have."""
    return np.asarray(run.first + np.arange(run.columns) < counts[:, run.count, None])
