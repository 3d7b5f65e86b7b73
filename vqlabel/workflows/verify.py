"""Checks of a complete `.vql`: every byte, every code, every label and every number that training uses."""

from os import PathLike

import numpy as np

from vqlabel.container import verify as verify_bytes
from vqlabel.errors import BadContainer
from vqlabel.labels.sparse import every_value
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.column_checks import check_columns
from vqlabel.vql.columns import ColumnReader
from vqlabel.vql.decode import label_steps, read_codec
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import is_text
from vqlabel.workflows.text.verify import verify_text

CODES_RECORDS, CODES_BYTES = 4096, 32 << 20  # codes read at a time, as records and as bytes of uint32


@check_argument_types
def verify(path: str | PathLike[str]) -> dict[str, int]:
    """Check every byte of a `.vql`, every code against its codebook, every context against the prior, that decoded
    labels are finite, and that training can use the columns. Memory does not grow with the file; the time is that of
    decoding all labels.

    `container.verify` checks the bytes only.

    Returns:
        Numbers of the checked bytes, tensors, streams and chunks.

    Raises:
        UsageError: the file does not exist.
        BadContainer: a part of it is damaged, forged or from a newer version.
    """
    if is_text(path):
        return verify_text(path)
    counts = verify_bytes(path)
    file = VqlFile(path)
    codec = read_codec(file)
    _check_class_ids(file)
    if isinstance(file.columns, ColumnReader):  # drawn columns are valid by construction
        check_columns(file.columns)
    first = 0
    for labels in label_steps(file, codec, 0, file.records):
        bad = ~every_value(labels).isfinite().all(1)
        if bad.any():
            raise BadContainer(f"{path}: label {first + int(bad.int().argmax())} decodes to NaN or Inf; damaged or forged")
        first += len(labels)
    return counts


def _check_class_ids(file: VqlFile) -> None:
    """Raises BadContainer if a label has a class twice."""
    slots = file.config.class_ids
    if slots.stop <= (slots.start or 0):
        return
    step = max(1, min(CODES_RECORDS, CODES_BYTES // (4 * max(1, len(file.code_bits)))))
    for first in range(0, file.records, step):
        ids = np.sort(file.codes(first, min(first + step, file.records))[:, slots], axis=1)
        twice = (ids[:, 1:] == ids[:, :-1]).any(1)
        if twice.any():
            raise BadContainer(f"{file.container.path}: label {first + int(twice.argmax())} has a class twice; damaged or forged")
