"""Lines of JSON, each the response of vLLM's OpenAI server to a request with `prompt_logprobs` -> documents.

A line has, at its top (chat completions) or in its only choice (completions, with "return_token_ids": true):

    prompt_token_ids    [L] token ids
    prompt_logprobs     [L]: null for the first token, and for each other one an object
                        {token id: {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}

of the k likeliest tokens, and of the token of the text itself if it is not among them: k or k + 1 entries, of which the
one more is dropped here. Entries are ordered by their rank, whatever their order in the object, so that ties stay as
the teacher ranked them. vLLM writes -9999 for a log-probability of -inf.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.shards import in_numeric_order
from vqlabel.labels.text.layouts.layout import TextLayout, TextOptions
from vqlabel.labels.text.source import TextAbout, TextDocument, TextSource
from vqlabel.labels.text.sparse_rows import need_vocabulary, settle_k, settle_rest, sparse_rows
from vqlabel.storage.filetypes import require_regular

SUFFIX = ".jsonl"
_TOKENS, _ROWS = "prompt_token_ids", "prompt_logprobs"


class _Line(NamedTuple):
    """Where one line lies, and how many tokens its document has."""

    path: Path
    number: int  # from 1
    start: int
    size: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.path}, line {self.number}"


class PromptLogprobsSource(TextSource):
    """One .jsonl file, or those of a folder in numeric order. Every line is parsed when the dump is opened.

    Raises:
        UsageError: vocab is missing, or k is larger than what is stored.
        BadLabels: a line is no such response, or stores fewer tokens of a row than others.
    """

    def __init__(self, path: Path, options: TextOptions) -> None:
        self.path = path
        vocabulary = need_vocabulary(options.vocab, path, "prompt_logprobs")
        self._rest, self._possible = settle_rest(options.rest), (0, 1 << 31)
        self._lines = [line for file in _files(path) for line in self._index(file)]
        self._k = max(1, self._possible[0])  # two are possible if the token of the text always ranks last: it is dropped
        self.about = TextAbout(
            layout="prompt_logprobs",
            domain="topk",
            width=settle_k(self._k, options.k, path),
            dtype="F32",
            vocabulary=vocabulary,
            rest=self._rest,
            details={"k": self._k, "rest": self._rest},
        )

    def __len__(self) -> int:
        return len(self._lines)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[D]"""
        return np.array([line.tokens for line in self._lines], np.int64)

    def _index(self, file: Path) -> Iterator[_Line]:
        """The lines of a file that are not blank; narrows the possible k by their rows."""
        require_regular(file)
        start = 0
        with file.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                line = _Line(file, number, start, len(text), 0)
                start += len(text)
                if text.strip():
                    tokens, rows = _parse(text, line.name)
                    for row, entries in enumerate(rows):
                        self._narrow(*_possible_k(tokens[row + 1], entries, f"{line.name}, row {row}"), f"{line.name}, row {row}")
                    yield line._replace(tokens=len(tokens))

    def _narrow(self, low: int, high: int, name: str) -> None:
        """Keep the k that are possible for this row, too."""
        if high == 0:
            raise BadLabels(f"{name}: has only the token of the text; request the k likeliest with prompt_logprobs = k")
        before = self._possible
        self._possible = max(low, before[0]), min(high, before[1])
        if self._possible[0] > self._possible[1]:
            raise BadLabels(
                f"{name}: has the {high} likeliest tokens, but rows before have {before[0]}; all requests of a dump must ask for the same number"
            )

    def _load(self, index: int) -> tuple[TextDocument, str]:
        line, k = self._lines[index], self.about.width
        with line.path.open("rb") as file:
            file.seek(line.start)
            tokens, rows = _parse(file.read(line.size), line.name)
        ids, logprobs = np.zeros((len(rows), k), np.int64), np.zeros((len(rows), k))
        for row, entries in enumerate(rows):
            ranked = _ranked(entries, tokens[row + 1] if len(entries) > self._k else None)[:k]
            ids[row], logprobs[row] = [token for token, _ in ranked], [logprob for _, logprob in ranked]
        assert self.about.vocabulary is not None
        labels = sparse_rows(ids, logprobs, self.about.vocabulary, self._rest, line.name)
        return TextDocument(tokens=np.array(tokens, np.int64), rows=labels), line.name


_Entries = dict[int, tuple[int, float]]  # token id -> its rank from 1, and its log-probability


def _parse(text: bytes, name: str) -> tuple[list[int], list[_Entries]]:
    """The tokens [L] of a line, and the entries of its L - 1 rows; raises BadLabels if it is no such response."""
    try:
        response = json.loads(text)
        if _ROWS not in response and len(choices := response["choices"]) == 1:
            response = choices[0]
        tokens, rows = response[_TOKENS], response[_ROWS]
    except (ValueError, RecursionError) as error:
        raise BadLabels(f"{name}: is not JSON ({str(error)[:80]}); the file is truncated or damaged") from None
    except (TypeError, KeyError, IndexError):
        raise BadLabels(
            f"{name}: has no {_TOKENS} and {_ROWS}, at its top or in its only choice; ask vLLM for them with prompt_logprobs = k and "
            "return_token_ids = true, one prompt in each request"
        ) from None
    if not isinstance(tokens, list) or not isinstance(rows, list) or not all(type(token) is int for token in tokens):
        raise BadLabels(f"{name}: {_TOKENS} must be a list of integers, and {_ROWS} a list")
    if len(rows) != len(tokens) or not tokens:
        raise BadLabels(
            f"{name}: {len(rows)} entries of {_ROWS} for {len(tokens)} tokens; there must be one for each, null for the first"
        )
    return tokens, [_entries(row, f"{name}, row {at}") for at, row in enumerate(rows[1:])]


def _entries(row: Any, name: str) -> _Entries:
    try:
        entries = {_token(key): (entry["rank"], entry["logprob"]) for key, entry in row.items()}
        if all(type(rank) is int and type(logprob) in (int, float) for rank, logprob in entries.values()):
            return entries
    except (AttributeError, TypeError, KeyError, ValueError):
        pass
    raise BadLabels(f"{name}: is {str(row)[:80]}; it must be an object of token ids, each with its rank and logprob")


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise ValueError(key)
    return int(key)


def _possible_k(gold: int, entries: _Entries, name: str) -> tuple[int, int]:
    """The least and largest k of which a row has the likeliest tokens, with the token of the text among or beside them.

    Raises:
        BadLabels: the token of the text is missing, or the ranks are not those of a request for any k.
    """
    if gold not in entries:
        raise BadLabels(f"{name}: has no entry for the next token of the text, {gold}; it is a row of another token or text")
    ranks = sorted(rank for rank, _ in entries.values())
    others = sorted(rank for token, (rank, _) in entries.items() if token != gold)
    count = len(entries)
    low = count - 1 if others == list(range(1, count)) else count
    high = count if ranks == list(range(1, count + 1)) else count - 1
    if low > high:
        raise BadLabels(f"{name}: has the ranks {str(ranks)[:80]}; the k likeliest tokens have the ranks 1 to k")
    return low, high


def _ranked(entries: _Entries, dropped: int | None) -> list[tuple[int, float]]:
    """(token, log-probability) by rank, without the token `dropped`."""
    ranked = sorted((rank, token) for token, (rank, _) in entries.items() if token != dropped)
    return [(token, entries[token][1]) for _, token in ranked]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted((file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith(".")), key=in_numeric_order)


LAYOUT = TextLayout(
    source=PromptLogprobsSource,
    detect=lambda path: bool(_files(path)) if path.is_dir() else path.suffix == SUFFIX,
    options=frozenset({"k", "rest"}),
)
