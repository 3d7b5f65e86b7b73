"""A .npy file of token ids -> documents: [n, L], or [T] with their length, or with offsets in a file beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput, UsageError, require
from vqlabel.labels.text.corpus.corpus import CorpusFile
from vqlabel.labels.text.stored_array import INTEGERS, StoredArray, read_arrays

SUFFIX, OFFSETS = ".npy", "offsets.npy"


class NpyFile(CorpusFile):
    """A .npy file.

    Args:
        length: tokens of each document of a flat array; the last one has what is left.

    Raises:
        UsageError: the documents of a flat array are unknown, or a length is given that does not apply.
        BadInput: the file is malformed, or its offsets do not fit.
    """

    def __init__(self, path: Path, length: int | None) -> None:
        self.path = path
        self._array = _integers(path)
        axes = len(self._array.shape)
        if axes not in (1, 2):
            raise BadInput(f"{path}: {self._array}; token ids are [n, L], a document a row, or [T], one after the other")
        beside = offsets_beside(path) if axes == 1 else None
        if axes == 2 or beside is not None:
            why = f"it has documents of {self._array.shape[1]} tokens" if beside is None else f"{beside} has its documents"
            require(length is None, "document_length", length, f"must be left out for {path}: {why}")
        if axes == 2:
            self._ends = np.arange(self._array.shape[0] + 1) * self._array.shape[1]
        elif beside is not None:
            self._ends = _read_offsets(beside, self._array)
        else:
            self._ends = _cut(self._array, length)

    def scan(self) -> Iterator[NDArray[np.int64]]:
        """See `CorpusFile`."""
        for index in range(len(self._ends) - 1):
            yield self.read(index)

    def read(self, index: int) -> NDArray[np.int64]:
        """See `CorpusFile`."""
        start, stop = self._ends[index : index + 2].tolist()
        return self._array.read(start, stop, len(self._array.shape)).astype(np.int64)

    def name(self, index: int) -> str:
        """See `CorpusFile`."""
        return f"{self.path}, document {index}"


def offsets_beside(path: Path) -> Path | None:
    """The file with the offsets of the documents of a .npy: NAME.offsets.npy, or offsets.npy; None: there is none."""
    names = (path.with_name(f"{path.stem}.{OFFSETS}"), path.with_name(OFFSETS))
    return next((file for file in names if file.exists()), None)


def _integers(path: Path) -> StoredArray:
    (array,) = read_arrays(path)[0].values()
    if array.dtype not in INTEGERS or array.dtype == "BOOL":
        raise BadInput(f"{path}: {array}; token ids must be integers")
    return array


def _read_offsets(path: Path, tokens: StoredArray) -> NDArray[np.int64]:
    """[D + 1] first token of every document, and T."""
    array, total = _integers(path), tokens.shape[0]
    ends = array.read(0, array.shape[0]).astype(np.int64) if len(array.shape) == 1 else np.empty(0, np.int64)
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != total or (np.diff(ends) < 0).any():
        raise BadInput(f"{path}: {array} must ascend from 0 to {total}, the tokens of {tokens.path}: [D + 1] for D documents")
    return ends


def _cut(tokens: StoredArray, length: int | None) -> NDArray[np.int64]:
    """[D + 1] offsets of documents of `length` tokens each."""
    total = tokens.shape[0]
    if length is None:
        raise UsageError(
            f"{tokens.path}: {tokens}, documents one after the other; tell where each ends: --document-length N cuts documents of N tokens "
            f"(document_length=N), or store their offsets [D + 1], from 0 to {total}, in {tokens.path.stem}.{OFFSETS} beside it"
        )
    require(length >= 2, "document_length", length, "must be 2 or more: a document of one token has no label")
    return np.append(np.arange(0, total, length), total)
