"""Checks of column values that fit their bit widths but that no view can have: NaN, a crop outside its image ..."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.config import MAX_VIEW
from vqlabel.errors import BadContainer
from vqlabel.labels.schema import CROP_COLUMNS
from vqlabel.vql.columns import ColumnReader, as_lambda

Faults = Iterator[tuple[str, Any]]  # a fault, and [n] bool: the records or batches that have it

RECORDS = 1 << 16  # records or batches checked at a time
MAX_CUTOUT = 2  # sides of a view: limit of a cutout's centre and extent


def check_columns(columns: ColumnReader) -> None:
    """Check the values of all columns, RECORDS rows at a time.

    Raises:
        BadContainer: a value is invalid; the message has the fault and the first record or batch that has it.
    """
    for unit, count, faults_of in (
        ("record", int(columns.starts[-1]), _record_faults),
        ("batch", len(columns.places), _batch_faults),
    ):
        for start in range(0, count, RECORDS):
            for fault, invalid in faults_of(columns, np.arange(start, min(start + RECORDS, count))):
                if invalid.any():
                    raise BadContainer(f"{columns.path}: {unit} {start + int(invalid.argmax())}: {fault}; damaged or forged")


def _record_faults(columns: ColumnReader, record: NDArray[np.int64]) -> Faults:
    for name in CROP_COLUMNS:
        crop = columns.crop(record, name)
        if crop is not None:  # top + height may exceed 1 by rounding to halves; renderers clip that
            inside = (crop >= 0) & (crop <= 1)
            yield f"its {name} is not inside its image", ~(inside.all(1) & (crop[:, 2:] > 0).all(1))
    cutout, ops = columns.numbers("cutout", record), columns.numbers("ops", record)
    if cutout is not None:
        shares, colour = abs(cutout[:, :4]) <= MAX_CUTOUT, (cutout[:, 4:] >= 0) & (cutout[:, 4:] <= 255)
        yield "its cutout is not inside a view, or its colour is not in 0..255", ~(shares.all(1) & colour.all(1))
    if ops is not None:
        yield "its ops contain NaN or Inf", ~np.isfinite(ops).all(1)
    patches, index = columns.column("patches", record), columns.column("mix_index", record)
    if patches is not None:
        strips = np.sort(patches.reshape(len(record), 2, -1), 2)
        yield "its patches are not a permutation of strips", (strips != np.arange(strips.shape[2])).any((1, 2))
    if index is not None:
        batch = columns.batch_of(record)
        yield "its mix_index is outside its batch", index[:, 0] >= columns.starts[batch + 1] - columns.starts[batch]


def _batch_faults(columns: ColumnReader, batch: NDArray[np.int64]) -> Faults:
    lam, box = columns.column("mix_lam", batch), columns.column("mix_box", batch)
    if lam is not None:
        yield "its lambda is not in 0..1", ~((as_lambda(lam) >= 0) & (as_lambda(lam) <= 1))
    if box is not None:
        yield f"its mix_box is outside views of {MAX_VIEW} pixels", (box > MAX_VIEW).any(1)
