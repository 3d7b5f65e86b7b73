"""A corpus and a teacher -> a `.vql`; hidden states exist for some documents at a time, and interrupted runs resume."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.bitstream import pack_fixed, packed_size, unpack_fixed
from vqlabel.codecs.documents import DocumentCodec
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.corpus.corpus import Corpus
from vqlabel.labels.text.corpus.open import open_corpus
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import VQL
from vqlabel.storage.journal import Journal
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.text.decode import as_output_head
from vqlabel.vql.text.file import TextVqlFile
from vqlabel.vql.text.streams import Fields
from vqlabel.workflows.run_state import RunState, state_path
from vqlabel.workflows.text.encode import encode_documents, group_sizes, write_labels
from vqlabel.workflows.text.fit import fit_opened, kept_codec
from vqlabel.workflows.text.open import OpenedText, opened_text
from vqlabel.workflows.text.pack import fitted_codec
from vqlabel.workflows.text.teacher_checks import checked_source
from vqlabel.workflows.text.teacher_source import BATCH, TeacherTextSource
from vqlabel.workflows.text.teachers import TextTeacher, load_text_teacher
from vqlabel.workflows.user_code import sha256_of


@check_argument_types
def relabel_text(
    corpus: str | PathLike[str] | Corpus,
    teacher: str | PathLike[str] | TextTeacher,
    out: str | PathLike[str],
    config: TextFitConfig | None = None,
    *,
    codec: DocumentCodec | str | PathLike[str] | None = None,
    batch: int = BATCH,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Label the documents of a corpus into a `.vql`; fit a codec to a sample of them first unless one is given.

    This is `vqlabel relabel --text`. After an interruption, even by kill -9, a second run continues and gives the bytes
    of an uninterrupted one: `<out>.journal` has the codes of the documents that are done, and `<out>.state` the codec
    or the state of its fit. Memory holds the hidden states of a few documents, and those of the sample during the fit.

    Args:
        corpus: a path for `open_corpus`, or a corpus. Texts are tokenized by the tokenizer in the teacher's folder.
        teacher: a name for `load_text_teacher`, or a teacher.
        config: of the codec to fit, or the rate at which a fitted codec is used; its device is that of a teacher which
            is loaded here.
        codec: a fitted codec or the path of its file; None: fit one.
        batch: documents that the teacher reads at a time; a label depends on it by rounding only.
        restart: discards what an interrupted run kept.

    Returns:
        `labels`, `documents` and `bytes` of the file, `code_bits` per label, `repeated` documents that were left out;
        `fit`, the report of the codec's fit; `notes`.

    Raises:
        UsageError: the teacher fails, or its head does not fit; or an interrupted run had other settings.
        BadInput: a document of the corpus is broken, or its tokens are not those of the teacher.
        TargetExists: `out` exists and `overwrite` is false.
    """
    config = config or TextFitConfig()
    check_target(out, VQL, overwrite=overwrite)
    loaded = teacher if isinstance(teacher, TextTeacher) else load_text_teacher(teacher, device=config.device)
    documents = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, tokenizer=loaded.tokenizer)
    check_apart(out, documents.path, beside=(None if isinstance(codec, DocumentCodec) else codec,))
    source = TeacherTextSource(documents, loaded, batch)
    head = as_output_head(loaded.head)
    opened = opened_text(checked_source(source, head), loaded.head, head, dict(documents.tokenizer))
    run = _Run(target=Path(out), teacher=source, opened=opened, restart=restart, progress=progress)
    used, report = run.fitted(config) if codec is None else fitted_codec(opened, codec, config)
    result = run.label(used, overwrite=overwrite)
    if codec is None:
        state_path(out).unlink(missing_ok=True)
    notes = noted(opened.source.notes)
    return {"path": str(out), **result, "code_bits": TextVqlFile(out).label_bits, "fit": report, **notes}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run that writes `target`, and what it keeps beside it to continue from.

    Attributes:
        teacher: labels the documents.
        opened: the same, checked, and the head.
        restart: discards what an interrupted run kept.
    """

    target: Path
    teacher: TeacherTextSource
    opened: OpenedText
    restart: bool
    progress: Progress

    @property
    def journal(self) -> Path:
        """Fields of the labels that are done."""
        return self.target.with_name(self.target.name + ".journal")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on besides the codec, and what the file records of it."""
        about, corpus = self.opened.about, self.teacher.corpus
        return {
            "corpus": f"{len(corpus)} documents with sha256 {corpus.sha256}",
            **{f"teacher_{name}": value for name, value in about["teacher"].items()},
            "head": about["head"]["sha256"],
            "tokenizer": about["tokenizer"].get("sha256"),
        }

    def fitted(self, config: TextFitConfig) -> tuple[DocumentCodec, dict[str, Any]]:
        """The codec of the interrupted run, or else a new one, and the report of its fit.

        A new one is taken from the state, too, so that all runs encode with the same weights.

        Raises:
            UsageError: the interrupted run had other settings.
        """
        state = RunState(self.target, restart=self.restart)
        state.begin({**self.settings, **replace(config, device="cpu").to_dict()})
        if state.result("codec") is None and self.journal.exists() and not self.restart:
            raise UsageError(
                f"{self.journal}: is the journal of an interrupted run, but {state_path(self.target).name}, with the codec of that run, is not "
                "beside it; repeat its settings (--codec), or discard it with --restart (restart=True)"
            )
        fit_opened(self.opened, config, state, progress=self.progress)
        kept = kept_codec(state, self.opened)
        assert kept is not None
        return kept

    def label(self, codec: DocumentCodec, *, overwrite: bool) -> dict[str, int]:
        """Label the documents that the journal lacks, and write the file."""
        source, widths = self.opened.source, codec.config.widths
        groups = list(group_sizes(source.lengths.tolist()))
        ends = np.cumsum(groups)
        rows = np.diff(np.cumsum(source.lengths - 1)[ends - 1], prepend=0).tolist()
        key = {**self.settings, "config": codec.config.to_dict(), "tensors": sha256_of(codec.decoder_tensors())}
        with Journal(
            self.journal, key, [packed_size(count, widths) for count in rows], 1, "uint8", restart=self.restart
        ) as journal:
            first, device = sum(groups[: journal.done]), self.teacher.teacher.device
            for _, fields in encode_documents(self.opened, codec, first=first, device=device):
                packed = pack_fixed(np.concatenate(fields), widths)
                journal.append(np.frombuffer(packed, np.uint8)[:, None])
                self.progress("labelling", int(ends[journal.done - 1]), len(source), {})
            labels = _stored(journal, rows, self.teacher, codec)
            result = write_labels(labels, codec, self.target, source.about.dtype, self.opened.about, overwrite=overwrite)
            journal.remove()
        return {**result, "repeated": int((self.teacher.corpus.lengths > 1).sum()) - len(source)}


def _stored(journal: Journal, rows: list[int], source: TeacherTextSource, codec: DocumentCodec) -> Iterator[tuple[bytes, Fields]]:
    """The hash and the fields of every document, from a complete journal."""
    document, corpus = 0, source.corpus
    for count, packed in zip(rows, journal, strict=True):
        fields, done = unpack_fixed(packed.tobytes(), count, codec.config.widths), 0
        while done < count:
            own = int(source.lengths[document]) - 1
            yield corpus.hash(int(corpus.distinct[document])), fields[done : done + own]
            document, done = document + 1, done + own
