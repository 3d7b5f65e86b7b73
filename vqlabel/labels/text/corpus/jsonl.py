"""Lines of JSON -> documents: a list of token ids, or a text, in each object."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput, UsageError
from vqlabel.labels.text.corpus.columns import MASK, TEXT, tokens_column, unpadded
from vqlabel.labels.text.corpus.corpus import CorpusFile
from vqlabel.labels.text.corpus.tokenizer import TextTokenizer
from vqlabel.storage.filetypes import require_regular

SUFFIX = ".jsonl"


class JsonlFile(CorpusFile):
    """A .jsonl file. The first line tells which field has the tokens; blank lines are left out.

    Raises:
        UsageError: it has texts, and there is no tokenizer.
        BadInput: a line is broken (in `scan`).
    """

    def __init__(self, path: Path, tokenizer: TextTokenizer | None) -> None:
        require_regular(path, BadInput)
        self.path, self._tokenizer, self._column = path, tokenizer, ""
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")

    def scan(self) -> Iterator[NDArray[np.int64]]:
        """See `CorpusFile`."""
        start = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    self._starts.append(start)
                    self._sizes.append(len(line))
                    self._lines.append(number)
                    yield self._tokens(line, f"{self.path}, line {number}")
                start += len(line)

    def read(self, index: int) -> NDArray[np.int64]:
        """See `CorpusFile`."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return self._tokens(file.read(self._sizes[index]), self.name(index))

    def name(self, index: int) -> str:
        """See `CorpusFile`."""
        return f"{self.path}, line {self._lines[index]}"

    def _tokens(self, line: bytes, where: str) -> NDArray[np.int64]:
        fields = _object(line, where)
        self._column = self._column or tokens_column(fields, where)
        if self._column not in fields:
            raise BadInput(f"{where}: has no {self._column}, which the first line has; all lines of a corpus are alike")
        if self._column == TEXT:
            return tokenized(self._tokenizer, fields[TEXT], where)
        tokens = _integers(fields, self._column, where)
        return unpadded(tokens, _integers(fields, MASK, where), where) if MASK in fields else tokens


def tokenized(tokenizer: TextTokenizer | None, text: Any, where: str) -> NDArray[np.int64]:
    """The ids of a text.

    Raises:
        UsageError: there is no tokenizer.
        BadInput: it is no text.
    """
    if not isinstance(text, str):
        raise BadInput(f"{where}: {TEXT} is {str(text)[:80]}; it must be a string")
    if tokenizer is None:
        raise UsageError(f"{where}: has a text and no token ids; pass the teacher's tokenizer.json or its folder with --tokenizer")
    return tokenizer(text)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: is not JSON ({str(error)[:80]}); the line is cut or damaged: write it again") from None
    if not isinstance(value, dict):
        raise BadInput(f'{where}: is {str(value)[:80]}; a line must be a JSON object, such as {{"input_ids": [5, 7]}}')
    return value


def _integers(fields: dict[str, Any], name: str, where: str) -> NDArray[np.int64]:
    values = fields[name]
    try:
        numbers = np.array(values if isinstance(values, list) else None)
    except ValueError:  # lists of several lengths
        numbers = np.array(None)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind != "i"):
        raise BadInput(f"{where}: {name} is {str(values)[:80]}; it must be a list of integers")
    return numbers.astype(np.int64)
