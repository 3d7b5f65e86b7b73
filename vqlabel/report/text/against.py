"""A `.vql` of documents and a dump -> distortion and calibration of its labels; documents are matched by tokens."""

from itertools import islice
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.errors import UsageError, require
from vqlabel.labels.text.checks import check_alignment
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.open import open_text_labels, refuse_topk
from vqlabel.labels.text.source import TextSource
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.distortion import kl_divergence
from vqlabel.metrics.factored import chunk_rows
from vqlabel.metrics.references import TextReferences
from vqlabel.metrics.token_distortion import TokenDistortion
from vqlabel.progress import Progress, silent
from vqlabel.report.samples import top_classes
from vqlabel.threads import large_operations
from vqlabel.vql.text.decode import attach_head, read_text_codec
from vqlabel.vql.text.file import TextVqlFile, as_fields
from vqlabel.workflows.text.encode import group_sizes
from vqlabel.workflows.text.open import open_text_dump

DEFAULT_LABELS = 100_000  # labels that are compared: their mean KL has a standard error of a few tenths of a per cent
BASELINE_LABELS = 4096  # labels that one mean label and top-k are measured on
HIGHER_TEMPERATURES = (2.0, 4.0)  # at which labels are compared, besides 1
MAX_RANGE = 1e3  # by which a dump's logit may be below the largest of its row; -inf is raised to it


@large_operations()
def distortion_against(
    file: TextVqlFile,
    dump: str | PathLike[str] | TextSource,
    *,
    head: str | PathLike[str] | None = None,
    labels: int = DEFAULT_LABELS,
    seed: int = 0,
    samples: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Decode labels of random documents that file and dump share, and compare them with the dump's, group by group.

    Args:
        head: the teacher's output head, a path for `open_head`: for dumps of hidden states, and for files that name
            their head.
        labels: about how many are compared; all, if there are not more.
        seed: of the choice of documents.
        samples: adds so many labels, raw and decoded, as `samples`: see `top_classes`.

    Returns:
        distortion: kl_T1, kl_T2 and kl_T4 (nats, times T^2), top1_agreement, squared_error and total_variation of
            probabilities; means over labels.
        calibration: `Calibration.figures`.
        baselines: see `TextReferences.judged`; absent if the KL is infinite.
        compared: numbers of compared labels and documents, the seed, and `only_in_dump` and `only_in_file`, documents
            of the whole dump and file that the other lacks.
        same_head: whether the dump's head has the sha256 that the file records; None: one of them is not known.

    Raises:
        UsageError: the head is missing, the vocabularies differ, or no document is in both.
        BadLabels: the dump is malformed, or its rows belong to other tokens.
    """
    require(labels >= 1, "labels", labels, "must be 1 or more")
    codec = read_text_codec(file)
    attach_head(file, codec, head)
    raw = _open(file, codec, dump, head)
    codec.to(device)
    pairs, only_in_dump = _shared_documents(file, raw.source, progress)
    chosen = _some(pairs, file.documents.rows[pairs[:, 0]], labels, seed)
    comparison, done = _Comparison(8 * file.container.size / max(1, file.rows), samples), 0
    documents = raw.source.read_many(chosen[:, 1])
    for size in group_sizes(raw.source.lengths[chosen[:, 1]].tolist()):
        group = list(islice(documents, size))
        fields = np.concatenate([file.fields(int(index)) for index in chosen[done : done + size, 0]])
        texts = Documents.of([document.tokens for document in group])
        decoded = codec.decode(torch.from_numpy(as_fields(fields)).to(device), texts)
        rows = torch.from_numpy(np.concatenate([np.asarray(document.rows) for document in group])).to(device)
        for start in range(0, len(rows), step := chunk_rows(file.classes)):
            part = slice(start, start + step)
            comparison.add(raw.logits(rows[part]), decoded.logits(part))
        done += size
        progress("comparing", done, len(chosen), {})
    return {
        **comparison.figures(),
        **({"samples": comparison.samples} if samples else {}),
        "compared": {
            "labels": comparison.distortion.labels,
            "documents": len(chosen),
            "seed": seed,
            "only_in_dump": only_in_dump,
            "only_in_file": len(file.documents) - len(pairs),
        },
        "same_head": raw.same_head,
    }


class _Raw(NamedTuple):
    """A dump to compare with. Without a head, its rows are logits."""

    source: TextSource
    head: OutputHead | None
    same_head: bool | None

    def logits(self, rows: Tensor) -> Tensor:
        """[n, V] float32, finite."""
        if self.head is not None:
            return self.head.to(rows.device).logits(rows)
        logits = rows.float()
        return torch.maximum(logits, logits.amax(1, keepdim=True) - MAX_RANGE)


def _open(
    file: TextVqlFile, codec: DocumentCodec, dump: str | PathLike[str] | TextSource, head: str | PathLike[str] | None
) -> _Raw:
    """Raises UsageError, BadLabels: see `distortion_against`."""
    refuse_topk(dump)
    source = dump if isinstance(dump, TextSource) else open_text_labels(dump)
    if source.about.domain == "logits":
        if head is not None and not (isinstance(codec, TokenVqae) and codec.config.head == "referenced"):
            raise UsageError(f"--head {head}: must be left out: {source.path} holds logits, behind the head")
        check_alignment(source)
        raw = _Raw(source, None, None)
        vocabulary = source.about.width
    else:
        opened = open_text_dump(source, head)
        assert opened.head is not None
        own, recorded = opened.about["head"].get("sha256"), file.text["head"].get("sha256")
        raw = _Raw(opened.source, opened.head, None if recorded is None else own == recorded)
        vocabulary = opened.head.vocabulary
    if vocabulary != file.classes:
        raise UsageError(
            f"{source.path} has labels of {vocabulary:,} tokens, {file.container.path} of {file.classes:,}: not the dump it was packed from"
        )
    return raw


def _shared_documents(file: TextVqlFile, source: TextSource, progress: Progress) -> tuple[NDArray[np.int64], int]:
    """[n, 2] index in file and dump of every document that both have; and the number of those that only the dump has.

    Documents of one token have no labels and are not counted; of documents with the same tokens, the first counts.

    Raises:
        UsageError: there is none.
    """
    place = np.full(len(file.documents), -1)
    labelled, missing = np.flatnonzero(source.lengths > 1), 0
    for done, index in enumerate(labelled.tolist()):
        document = file.documents.find(token_hash(source.tokens(index)))
        if document is None:
            missing += 1
        elif place[document] < 0:
            place[document] = index
        progress("matching documents", done + 1, len(labelled), {})
    shared = np.flatnonzero(place >= 0)
    if not len(shared):
        raise UsageError(
            f"{source.path}: none of its {missing:,} documents is among the {len(place):,} of {file.container.path}: not the dump it was packed "
            "from, or its tokens are those of another tokenizer"
        )
    return np.stack([shared, place[shared]], 1), missing


def _some(pairs: NDArray[np.int64], rows: NDArray[np.int64], labels: int, seed: int) -> NDArray[np.int64]:
    """Random pairs with about so many labels, in the order of the dump."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = int(np.searchsorted(np.cumsum(rows[order]), labels)) + 1
    chosen = pairs[order[:count]]
    return chosen[np.argsort(chosen[:, 1])]


class _Comparison:
    """Running distortion and calibration of decoded labels."""

    def __init__(self, bits: float, samples: int) -> None:
        """`bits`: per label of the file; `samples`: labels to keep."""
        self.samples: list[dict[str, Any]] = []
        self.wanted = samples
        self.distortion, self.calibration, self.references = TokenDistortion(), Calibration(), TextReferences(bits)
        self.kl = dict.fromkeys(HIGHER_TEMPERATURES, 0.0)

    def add(self, raw: Tensor, decoded: Tensor) -> None:
        """Count labels, logits [n, V]."""
        if len(self.samples) < self.wanted:
            self.samples.append(top_classes(raw[-1], decoded[-1], f"label {self.distortion.labels + len(raw) - 1:,}"))
        self.distortion.add(raw.softmax(1), decoded.softmax(1))
        self.calibration.add(raw, decoded)
        if self.references.labels < BASELINE_LABELS:  # documents are random, so the first labels are
            self.references.add(raw)
        for temperature in self.kl:
            self.kl[temperature] += float(kl_divergence(raw, decoded, temperature).double().sum())

    def figures(self) -> dict[str, Any]:
        """`distortion` and `calibration`."""
        figures, labels = self.distortion.figures(), max(1, self.distortion.labels)
        distortion = {"kl_T1": figures["kl"], **{f"kl_T{t:g}": kl / labels for t, kl in self.kl.items()}}
        distortion |= {name: figures[name] for name in ("top1_agreement", "squared_error", "total_variation")}
        result: dict[str, Any] = {"distortion": distortion, "calibration": self.calibration.figures()}
        return result if figures["kl"] is None else {**result, "baselines": self.references.judged(figures["kl"])}
