"""Are the columns of a `.vql` such as training can use? Numbers that their widths allow and no view has: NaN, a crop beyond its image ..."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.config import MAX_VIEW
from vqlabel.errors import BadContainer
from vqlabel.labels.schema import CROP_COLUMNS
from vqlabel.vql.columns import ColumnReader, as_lambda

Found = Iterator[tuple[str, Any]]  # what may be wrong, and [n] of which records or batches it is

RECORDS = 1 << 16  # looked at together
MAX_CUTOUT = 2  # of a view's side, that a cutout's centre and extent may be


def check_columns(columns: ColumnReader) -> None:
    """Look at all of them, some records at a time.

    Raises:
        BadContainer: what is wrong, and the first record or batch of which it is.
    """
    for what, count, look in (("record", int(columns.starts[-1]), _records), ("batch", len(columns.places), _batches)):
        for at in range(0, count, RECORDS):
            for fault, wrong in look(columns, np.arange(at, min(at + RECORDS, count))):
                if wrong.any():
                    raise BadContainer(f"{columns.path}: {what} {at + int(wrong.argmax())}: {fault}; damaged or forged")


def _records(columns: ColumnReader, record: NDArray[np.int64]) -> Found:
    for name in CROP_COLUMNS:
        crop = columns.crop(record, name)
        if crop is not None:
            inside = (crop >= 0) & (crop <= 1)  # what lies beyond the image is cut off: halves round so
            yield f"its {name} is no part of its image", ~(inside.all(1) & (crop[:, 2:] > 0).all(1))
    cutout, ops = columns.numbers("cutout", record), columns.numbers("ops", record)
    if cutout is not None:
        shares, colour = abs(cutout[:, :4]) <= MAX_CUTOUT, (cutout[:, 4:] >= 0) & (cutout[:, 4:] <= 255)
        yield "its cutout is no part of a view, or of no colour in 0..255", ~(shares.all(1) & colour.all(1))
    if ops is not None:
        yield "its ops hold NaN or Inf", ~np.isfinite(ops).all(1)
    patches, index = columns.column("patches", record), columns.column("mix_index", record)
    if patches is not None:
        strips = np.sort(patches.reshape(len(record), 2, -1), 2)
        yield "its patches are no order of strips", (strips != np.arange(strips.shape[2])).any((1, 2))
    if index is not None:
        batch = columns.batch_of(record)
        yield "its mix_index leaves its batch", index[:, 0] >= columns.starts[batch + 1] - columns.starts[batch]


def _batches(columns: ColumnReader, batch: NDArray[np.int64]) -> Found:
    lam, box = columns.column("mix_lam", batch), columns.column("mix_box", batch)
    if lam is not None:
        yield "its lambda is not in 0..1", ~((as_lambda(lam) >= 0) & (as_lambda(lam) <= 1))
    if box is not None:
        yield f"its mix_box leaves views of {MAX_VIEW} pixels", (box > MAX_VIEW).any(1)
