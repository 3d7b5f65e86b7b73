"""Arrays of tokens and of rows, as one file or folder holds them -> where each document lies in them.

    tokens [L]      rows [L, d] or [L - 1, d]            one document
    tokens [T]      rows [T, d] or [T - D, d]            D documents one after the other; lengths [D] or offsets [D + 1]
    tokens [D, m]   rows [D, m, d] or [D, m - 1, d]      D documents; lengths [D] or attention_mask [D, m] if padded

If there is a row for each token, the row of a document's last token, which predicts an unseen one, is dropped. Between
the positions and d, rows may have an axis of layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.select_array import words_of
from vqlabel.labels.text.stored_array import FLOATS, INTEGERS, Arrays, StoredArray

TOKENS = ("token_ids", "input_ids", "tokens", "prompt_token_ids")
HIDDEN = ("hidden_states", "hidden", "last_hidden_state", "last_hidden_states", "hidden_state", "target_last_hidden_states")
LOGITS = ("logits",)
LENGTHS, OFFSETS, MASKS = ("lengths", "document_lengths"), ("offsets", "document_offsets", "cu_seqlens"), ("attention_mask",)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArrayGroup:
    """The arrays of one file, or of one folder of .npy files, and the documents in them.

    Attributes:
        path: of the file or folder, for messages.
        tokens: [T] or [D, m].
        rows: [*positions, d] or [*positions, layers, d].
        token_start: [D] place of each document's first token among all tokens.
        lengths: [D] tokens of each document.
        row_start: [D] place of each document's first row among all rows.
    """

    path: Path
    tokens: StoredArray
    rows: StoredArray
    token_start: NDArray[np.int64]
    lengths: NDArray[np.int64]
    row_start: NDArray[np.int64]

    @property
    def domain(self) -> str:
        """ "logits" if that is a word of the name of the array of rows, else "hidden"."""
        return "logits" if "logits" in words_of(self.rows.name) else "hidden"

    @property
    def layers(self) -> int:
        """Layers of hidden states at each position; 0: there is no axis of layers."""
        inner = self.rows.shape[len(self.tokens.shape) :]
        return inner[0] if len(inner) == 2 else 0

    def read_tokens(self, document: int) -> NDArray[np.int64]:
        """[L] ids."""
        start = int(self.token_start[document])
        return self.tokens.read(start, start + int(self.lengths[document]), len(self.tokens.shape)).astype(np.int64)

    def read_rows(self, document: int, layer: int) -> NDArray[np.floating]:
        """[L - 1, d] the rows of a document, of one layer if there are several."""
        start = int(self.row_start[document])
        rows = self.rows.read(start, start + int(self.lengths[document]) - 1, len(self.tokens.shape))
        return np.ascontiguousarray(rows[:, layer]) if self.layers else rows


def group_arrays(arrays: Arrays, path: Path, requested: str | None = None) -> ArrayGroup:
    """Find the tokens, the rows and the documents among the arrays of a file or folder.

    Args:
        arrays: by name.
        path: of the file or folder, for messages.
        requested: name of the array of rows; None: the one that is named as in HIDDEN or LOGITS.

    Raises:
        UsageError: there is no array of the requested name.
        BadLabels: arrays are missing, or do not fit each other.
    """
    tokens, rows = _only(arrays, TOKENS, "tokens", path), _rows(arrays, requested, path)
    if tokens is None:
        raise BadLabels(f"{path}: contains {_listed(arrays)}, but no tokens; they are an array named {' or '.join(TOKENS)}")
    _check_types(tokens, rows, path)
    axes = len(tokens.shape)
    positions, missing = rows.shape[:axes], tokens.shape[-1:] == (0,)
    if missing or not 1 <= axes <= 2 or not 1 <= len(rows.shape) - axes <= 2 or positions[:-1] != tokens.shape[:-1]:
        raise BadLabels(_misfit(tokens, rows, path))
    spans = _flat(arrays, tokens, rows, path) if axes == 1 else _stacked(arrays, tokens, rows, path)
    return ArrayGroup(path=path, tokens=tokens, rows=rows, token_start=spans[0], lengths=spans[1], row_start=spans[2])


def _rows(arrays: Arrays, requested: str | None, path: Path) -> StoredArray:
    if requested is not None:
        if requested not in arrays:
            raise UsageError(f"array is {requested!r}; {path} contains {_listed(arrays)}: name one of them")
        return arrays[requested]
    rows = _only(arrays, HIDDEN + LOGITS, "rows", path)
    if rows is None:
        raise BadLabels(
            f"{path}: contains {_listed(arrays)}, but neither hidden states ({', '.join(HIDDEN)}) nor logits; name the array with array="
        )
    return rows


def _only(arrays: Arrays, names: Sequence[str], what: str, path: Path) -> StoredArray | None:
    """The array of one of these names; None: there is none. Raises BadLabels if there are several."""
    candidates = [arrays[name] for name in names if name in arrays]
    if len(candidates) > 1:
        remedy = "name one with array=" if what == "rows" else "remove or rename the others"
        raise BadLabels(f"{path}: several of its arrays may be the {what}: {', '.join(map(str, candidates))}; {remedy}")
    return candidates[0] if candidates else None


def _check_types(tokens: StoredArray, rows: StoredArray, path: Path) -> None:
    if tokens.dtype not in INTEGERS:
        raise BadLabels(f"{path}: {tokens}; tokens must be integers")
    if rows.dtype not in FLOATS:
        raise BadLabels(f"{path}: {rows}; rows must be {', '.join(FLOATS)}: convert them first")


def _misfit(tokens: StoredArray, rows: StoredArray, path: Path) -> str:
    return (
        f"{path}: {tokens} and {rows} do not fit: L tokens have rows [L, d] or [L - 1, d], or [L, layers, d]; D documents of m tokens "
        "have rows [D, m, d] or [D, m - 1, d]"
    )


_Spans = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _flat(arrays: Arrays, tokens: StoredArray, rows: StoredArray, path: Path) -> _Spans:
    """Start of tokens, length and start of rows of each document in arrays [T]."""
    (total,), (count, *_) = tokens.shape, rows.shape
    lengths = _lengths(arrays, path)
    if lengths is None:
        lengths = np.array([total])
    _check_lengths(lengths, total, path)
    if int(lengths.sum()) != total:
        raise BadLabels(f"{path}: the lengths of {len(lengths)} documents sum to {lengths.sum()}, but there are {total} tokens")
    start = np.cumsum(lengths) - lengths
    if count not in (total, total - len(lengths)):
        raise BadLabels(_misfit(tokens, rows, path))
    return start, lengths, start if count == total else start - np.arange(len(lengths))


def _stacked(arrays: Arrays, tokens: StoredArray, rows: StoredArray, path: Path) -> _Spans:
    """Start of tokens, length and start of rows of each document in arrays [D, m]."""
    (documents, width), positions = tokens.shape, rows.shape[1]
    if positions not in (width, width - 1):
        raise BadLabels(_misfit(tokens, rows, path))
    lengths, mask, left = _lengths(arrays, path), _only(arrays, MASKS, "mask", path), np.zeros(documents, np.int64)
    if lengths is None:
        left, lengths = (left, np.full(documents, width)) if mask is None else _unpadded(mask, tokens, path)
    _check_lengths(lengths, width, path)
    if len(lengths) != documents:
        raise BadLabels(f"{path}: {len(lengths)} lengths do not fit {tokens}; there must be one for each document")
    at = np.arange(documents)
    return at * width + left, lengths, at * positions + left


def _lengths(arrays: Arrays, path: Path) -> NDArray[np.int64] | None:
    """[D] tokens of each document, if they are recorded as lengths or as offsets from 0 to T."""
    lengths, offsets = _only(arrays, LENGTHS, "lengths", path), _only(arrays, OFFSETS, "offsets", path)
    array = lengths or offsets
    if array is None:
        return None
    if array.dtype not in INTEGERS or len(array.shape) != 1:
        raise BadLabels(f"{path}: {array}; lengths and offsets of documents must be integers [D] and [D + 1]")
    numbers = array.read(0, array.shape[0]).astype(np.int64)
    if lengths is not None:
        return numbers
    if not len(numbers) or numbers[0] != 0:
        raise BadLabels(
            f"{path}: {array} begins with {numbers[0] if len(numbers) else 'nothing'}; offsets of documents begin with 0 and end with T"
        )
    return np.diff(numbers)


def _check_lengths(lengths: NDArray[np.int64], most: int, path: Path) -> None:
    wrong = (lengths < 1) | (lengths > most)
    if wrong.any():
        at = int(wrong.argmax())
        raise BadLabels(f"{path}: document {at} has {lengths[at]} tokens; it must have 1..{most}")


def _unpadded(mask: StoredArray, tokens: StoredArray, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token and length [D] of documents padded on one side or both; a mask is 1 at tokens and 0 at padding."""
    if mask.shape != tokens.shape or mask.dtype not in INTEGERS:
        raise BadLabels(f"{path}: {mask} does not fit {tokens}; a mask has 1 for each token and 0 for padding")
    known = mask.read(0, mask.shape[0]) != 0
    left, lengths = known.argmax(1), known.sum(1)
    last = known.shape[1] - known[:, ::-1].argmax(1)
    has_gap = (lengths > 0) & (last - left != lengths)
    if has_gap.any():
        row = int(has_gap.argmax())
        raise BadLabels(f"{path}: the mask of document {row} has padding between tokens; only its ends may be padded")
    return left.astype(np.int64), lengths.astype(np.int64)


def _listed(arrays: Arrays, limit: int = 6) -> str:
    shown = ", ".join(map(str, list(arrays.values())[:limit])) or "no arrays"
    return shown + (f" and {len(arrays) - limit} more" if len(arrays) > limit else "")
