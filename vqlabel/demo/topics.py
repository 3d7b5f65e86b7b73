"""The help texts of the Python language, which every installation has -> documents of tokens."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import VqlabelError

PIECE = re.compile(r" ?\w+|\n+ *|[^\w]")  # a word with the space before it, line ends with indentation, or another character
WORD = re.compile(r"\w+")
TABLE_RULE = re.compile(r"^ *[|+][ |+=-]{7,}\n", re.MULTILINE)  # a line of a table without text


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicText:
    """The text as tokens, cut into documents."""

    vocabulary: tuple[str, ...]  # V: all characters of the text, then its most frequent words
    documents: NDArray[np.int64]  # [documents, length] tokens, all different


def make_text(vocabulary: int, length: int, documents: int | None = None) -> TopicText:
    """Tokenize the topics of Python's `help()`: frequent words are tokens, and other words are spelled by characters.

    Topics contain each other: a paragraph or a document that occurs again is left out, so that no document is both
    learned from and held out. The lines that tables are drawn with are left out, too.

    Args:
        vocabulary: V, tokens; at least the number of different characters, about 110.
        length: tokens of each document.
        documents: the first of them; None: all.

    Raises:
        VqlabelError: this Python has no `pydoc_data`.
    """
    text = _distinct_paragraphs()
    pieces, characters = PIECE.findall(text), sorted(set(text))
    words = Counter(piece for piece in pieces if len(piece) > 1)
    tokens = (*characters, *(word for word, _ in words.most_common(max(0, vocabulary - len(characters)))))
    ids = {token: index for index, token in enumerate(tokens)}
    stream = np.array(
        [index for piece in pieces for index in ([ids[piece]] if piece in ids else [ids[c] for c in piece])], np.int64
    )
    count = len(stream) // length
    cut = stream[: count * length].reshape(count, length)
    first = np.sort(np.unique(cut, axis=0, return_index=True)[1])
    return TopicText(vocabulary=tokens, documents=cut[first[:documents]])


def _distinct_paragraphs() -> str:
    """The text of all topics, each paragraph once, whatever stands between its words."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise VqlabelError(
            "this Python has no module pydoc_data, whose text the demo learns from; use a Python with its complete standard library"
        ) from error
    text = TABLE_RULE.sub("", "\n\n".join(topics[name] for name in sorted(topics)))
    paragraphs: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        paragraphs.setdefault(" ".join(WORD.findall(paragraph)), paragraph)
    return "\n\n".join(paragraphs.values())
