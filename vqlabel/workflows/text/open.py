"""A dump of documents and the path of its head -> checked documents, and the head as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self

import numpy as np
import torch

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.errors import UsageError
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.text.checks import check_alignment, settle_norm
from vqlabel.labels.text.head import open_head
from vqlabel.labels.text.head_contract import Head
from vqlabel.labels.text.open import open_text_labels
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.labels.text.tokenizer import tokenizer_identity
from vqlabel.vql.text.decode import as_output_head
from vqlabel.workflows.text.logits import FactoredLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedText:
    """A dump of documents with its head.

    Attributes:
        source: checked: its rows belong to the tokens after them.
        head: of the teacher; None: the rows are top-k labels.
        about: `tokenizer`, `teacher` and `head`, as a `.vql` records them.
    """

    source: TextSource
    head: OutputHead | None
    about: dict[str, Any]

    def to(self, device: str | torch.device) -> Self:
        """With the head on a device."""
        return self if self.head is None else replace(self, head=self.head.to(device))

    def labels(self, documents: Sequence[TextDocument], device: str | torch.device = "cpu") -> HiddenLabels | SparseLabels:
        """The labels of one or more documents as tensors on a device, in the form that codecs take."""
        sparse = [document.rows for document in documents if isinstance(document.rows, SparseLabels)]
        if sparse:
            return SparseLabels.concatenate(sparse).map(lambda array: torch.from_numpy(array).to(device))
        assert self.head is not None
        hidden = np.concatenate([np.asarray(document.rows) for document in documents])
        return HiddenLabels(hidden=torch.from_numpy(hidden).to(device), head=self.head)


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
    if source.about.domain != "hidden":
        return _open_without_head(source, head, identity)
    if head is None:
        raise UsageError(f"{source.path}: holds hidden states; pass the teacher's output head with --head (a model folder or file)")
    stored = open_head(head, vocab=source.about.vocabulary)
    return opened_text(settle_norm(source, stored), stored, as_output_head(stored), identity)


def _open_without_head(source: TextSource, head: str | PathLike[str] | None, tokenizer: dict[str, str]) -> OpenedText:
    """A dump of top-k labels; or of dense logits, read as hidden states with a head of its own."""
    is_topk = source.about.domain == "topk"
    if head is not None:
        what = "top-k labels, and probabilities need no head" if is_topk else "logits, behind the head"
        raise UsageError(f"--head {head}: must be left out: {source.path} holds {what}")
    check_alignment(source)
    about = {"tokenizer": tokenizer, "teacher": dict(source.about.teacher), "head": {}}
    if is_topk:
        return OpenedText(source=source, head=None, about=about)
    factored = FactoredLogits(source)
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
