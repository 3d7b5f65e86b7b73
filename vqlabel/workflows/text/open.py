"""A dump of documents and the path of its head -> checked documents, and the head as tensors."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.errors import UsageError
from vqlabel.labels.text.checks import check_alignment, settle_norm
from vqlabel.labels.text.head import open_head
from vqlabel.labels.text.head_contract import Head
from vqlabel.labels.text.open import open_text_labels
from vqlabel.labels.text.source import TextSource
from vqlabel.labels.text.tokenizer import tokenizer_identity
from vqlabel.vql.text.decode import as_output_head
from vqlabel.workflows.text.logits import FactoredLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedText:
    """A dump of documents with its head.

    Attributes:
        source: checked: its rows belong to the tokens after them.
        head: of the teacher.
        about: `tokenizer`, `teacher` and `head`, as a `.vql` records them.
    """

    source: TextSource
    head: OutputHead
    about: dict[str, Any]


def open_text_dump(
    dump: str | PathLike[str] | TextSource,
    head: str | PathLike[str] | None,
    *,
    tokenizer: str | PathLike[str] | None = None,
    layout: str | None = None,
    layer: int | None = None,
) -> OpenedText:
    """Open a dump and its head, and check that its rows are the distributions of the tokens after them.

    Args:
        dump: a path for `open_text_labels`, or a source.
        head: a path for `open_head`.
        tokenizer: a path for `tokenizer_identity`; None: as the dump records it.

    Raises:
        UsageError: the head is missing or of another size.
        BadLabels: the dump is malformed, or its rows belong to other tokens.
    """
    source = dump if isinstance(dump, TextSource) else open_text_labels(dump, layout, layer=layer)
    identity = dict(source.about.tokenizer) if tokenizer is None else tokenizer_identity(tokenizer)
    if source.about.domain == "logits":
        return _open_logits(source, head, identity)
    if source.about.domain != "hidden":
        raise UsageError(
            f"{source.path}: holds {source.about.domain} rows; this codec takes hidden states with the head, or dense logits: save one of these"
        )
    if head is None:
        raise UsageError(f"{source.path}: holds hidden states; pass the teacher's output head with --head (a model folder or file)")
    stored = open_head(head, vocab=source.about.vocabulary)
    return opened_text(settle_norm(source, stored), stored, as_output_head(stored), identity)


def _open_logits(source: TextSource, head: str | PathLike[str] | None, tokenizer: dict[str, str]) -> OpenedText:
    """A dump of dense logits, read as hidden states with a head of its own."""
    if head is not None:
        raise UsageError(f"--head {head}: must be left out: {source.path} holds logits, behind the head")
    check_alignment(source)
    factored = FactoredLogits(source)
    about = {"tokenizer": tokenizer, "teacher": dict(source.about.teacher), "head": {}}
    return OpenedText(source=factored, head=factored.head, about=about)


def opened_text(source: TextSource, stored: Head, head: OutputHead, tokenizer: dict[str, str]) -> OpenedText:
    """A checked dump, with what a `.vql` records of it.

    Args:
        stored: the head as it is stored; head: the same in memory.
    """
    source.notes.extend(note for note in stored.notes if note not in source.notes)
    about = {"tokenizer": tokenizer, "teacher": dict(source.about.teacher), "head": describe_head(stored)}
    return OpenedText(source=source, head=head, about=about)


def describe_head(stored: Head) -> dict[str, Any]:
    """What a `.vql` records of a head."""
    head = {"model": stored.path.name, "tensor": stored.name, "sha256": stored.sha256, "vocabulary": stored.vocabulary}
    return head if stored.soft_cap is None else {**head, "soft_cap": stored.soft_cap}
