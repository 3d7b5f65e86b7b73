"""Checks of a complete `.vql` of documents: every byte, every code, every exact id, and the decoder."""

from os import PathLike

import numpy as np

from vqlabel.container import verify as verify_bytes
from vqlabel.errors import BadContainer
from vqlabel.vql.text.decode import read_text_codec
from vqlabel.vql.text.file import TextVqlFile


def verify_text(path: str | PathLike[str]) -> dict[str, int]:
    """Check every byte, that counts, codes and ids are in range, that no label has an id twice, that no document is
    there twice, and that the decoder is complete. Labels are not decoded: their tokens are not in the file.

    Returns:
        Numbers of the checked bytes, tensors, streams and chunks.

    Raises:
        UsageError: the file does not exist.
        BadContainer: a part of it is damaged, forged or from a newer version.
    """
    counts = verify_bytes(path)
    file = TextVqlFile(path)
    read_text_codec(file)
    if len(np.unique(file.documents.hashes)) < len(file.documents):
        raise BadContainer(f"{path}: has a document twice; damaged or forged")
    for index in range(len(file.documents)):
        _check_ids(file, index)
    return counts


def _check_ids(file: TextVqlFile, index: int) -> None:
    """Raises BadContainer if a label of a document has an id twice."""
    fields, columns = file.fields(index), file.config.class_ids
    count = columns.stop - columns.start
    if count < 2:
        return
    ids = fields[:, columns].astype(np.int64)
    counts = len(file.config.count_limits)
    used = np.arange(count) < (fields[:, counts - 1, None] if counts else count)
    ids = np.sort(np.where(used, ids, -1 - np.arange(count)), axis=1)  # unused fields differ from each other
    twice = (ids[:, 1:] == ids[:, :-1]).any(1)
    if twice.any():
        raise BadContainer(
            f"{file.container.path}: document {index}, label {int(twice.argmax())} has an id twice; damaged or forged"
        )
