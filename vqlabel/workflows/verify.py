"""`.vql` -> checked through: every byte, every code, every label and every number that training would use."""

from os import PathLike

import numpy as np

from vqlabel.container import verify as verify_bytes
from vqlabel.errors import BadContainer
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.column_checks import check_columns
from vqlabel.vql.columns import ColumnReader
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.unpack import decode_steps, read_codec

CODES_RECORDS, CODES_BYTES = 4096, 32 << 20  # read at a time; a code takes 4 bytes at most


@check_argument_types
def verify(path: str | PathLike[str]) -> dict[str, int]:
    """Read and check every byte of a `.vql` file, every code against its codebook, every context against the prior, that decoded labels
    are finite, and that columns hold what training can use. Memory does not grow with the file; time is that of decoding all labels.

    `container.verify` stops at the bytes.

    Returns:
        bytes, tensors, streams and chunks that were checked.

    Raises:
        UsageError: no such file.
        BadContainer: anything in it is damaged, forged or from a newer version.
    """
    found = verify_bytes(path)
    file = VqlFile(path)
    codec = read_codec(file)
    _check_class_ids(file)
    if isinstance(file.columns, ColumnReader):  # others are drawn
        check_columns(file.columns)
    at = 0
    for labels in decode_steps(file, codec, 0, file.records):
        bad = ~labels.isfinite().all(1)
        if bad.any():
            raise BadContainer(f"{path}: label {at + int(bad.int().argmax())} decodes to NaN or Inf; damaged or forged")
        at += len(labels)
    return found


def _check_class_ids(file: VqlFile) -> None:
    """Raises BadContainer where a label names a class twice."""
    ids = file.config.class_ids
    step = max(1, min(CODES_RECORDS, CODES_BYTES // (4 * max(1, len(file.code_bits)))))
    for at in range(0, file.records if ids.stop > (ids.start or 0) else 0, step):
        named = np.sort(file.codes(at, min(at + step, file.records))[:, ids], axis=1)
        twice = (named[:, 1:] == named[:, :-1]).any(1)
        if twice.any():
            raise BadContainer(f"{file.container.path}: label {at + int(twice.argmax())} names a class twice; damaged or forged")
