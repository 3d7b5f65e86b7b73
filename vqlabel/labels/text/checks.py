"""Whether the rows of a dump are the distributions of the tokens that they stand before, by a sample of them.

The mean cross-entropy of the next token under its row must be below that of a unigram model, and below those of the
token before and the token after it. Two faults of hidden states are known to happen and change no shape: rows that are
shifted by a token, and states from before the final norm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.text.head import StoredHead
from vqlabel.labels.text.norm import FinalNorm, NormedSource
from vqlabel.labels.text.source import TextDocument, TextSource

SAMPLE_DOCUMENTS, MAX_SAMPLE_ROWS, MIN_SAMPLE_ROWS = 64, 2048, 128
SAMPLE_OPERATIONS = 4e11  # of the products with the head: some ten seconds of one core
CHUNK_NUMBERS = 1 << 22  # of one [rows, ids] float32 matrix of logits
MARGIN = 0.1  # nats by which another reading must be better to count as the right one
MIN_ROWS = 16  # below, a sample tells nothing
MIN_PROBABILITY = 1e-10  # of a token in a cross-entropy


class Costs(NamedTuple):
    """Mean cross-entropies of tokens under the rows of a sample, in nats."""

    next: float  # of token t + 1 under row t, which is how rows are read
    before: float  # of token t
    after: float  # of token t + 2, where there is one


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """How well a sample of rows fits tokens.

    Attributes:
        documents, rows: of the sample.
        unigram: mean cross-entropy of the next token under the counts, plus one, of the sampled documents' tokens.
        stored: of the rows as they are stored.
        normed: of the rows behind the final norm; None: they are no hidden states, or have passed it, or it is unknown.
    """

    documents: int
    rows: int
    unigram: float
    stored: Costs
    normed: Costs | None = None

    @property
    def is_before_norm(self) -> bool:
        """Whether the rows fit tokens only, or better, if the final norm is applied to them."""
        return self.normed is not None and min(self.normed) < min(min(self.stored) - MARGIN, self.unigram)


def check_alignment(source: TextSource, head: StoredHead | None = None) -> Alignment:
    """Check on a sample of documents from the whole dump that its rows belong to the tokens that follow them.

    Samples of fewer than MIN_ROWS rows are not judged. Not every fault shows: the states of a layer near the last one
    predict the next token, too, and only less well.

    Args:
        head: of the teacher, for hidden states; None: the rows are logits or top-k labels.

    Raises:
        UsageError: the head is missing, or of another width or vocabulary.
        BadLabels: the rows fit other tokens better, or are states from before the final norm, or fit no tokens.
    """
    figures = measure_alignment(source, head)
    if figures.rows >= MIN_ROWS:
        if figures.is_before_norm:
            raise BadLabels(_before_norm(source, head, figures))
        _judge(source, head, figures, figures.stored)
    return figures


def settle_norm(source: TextSource, head: StoredHead) -> TextSource:
    """A checked dump, with the final norm applied to its hidden states if they are from before it.

    Raises:
        UsageError, BadLabels: see `check_alignment`.
    """
    figures = measure_alignment(source, head)
    if figures.rows < MIN_ROWS:
        return source
    if head.norm is None or figures.normed is None or not figures.is_before_norm:
        _judge(source, head, figures, figures.stored)
        return source
    _judge(source, head, figures, figures.normed)
    normed = NormedSource(source, head.norm)
    normed.notes.append(
        f"{source.path}: the mean cross-entropy of the tokens is {figures.normed.next:.2f} nats with it, {figures.stored.next:.2f} without"
    )
    return normed


def measure_alignment(source: TextSource, head: StoredHead | None = None) -> Alignment:
    """The figures that `check_alignment` judges, without a judgement.

    Raises:
        UsageError: see `check_alignment`.
    """
    _check_fit(source, head)
    size = source.about.width * (head.vocabulary if head else 1)
    sample = _sample(source, int(np.clip(SAMPLE_OPERATIONS / (2 * size), MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS)))
    norm = None if head is None or isinstance(source, NormedSource) else head.norm
    counts: Counter[int] = Counter()
    for document, _ in sample:
        _check_ids(source, document, head)
        counts.update(document.tokens.tolist())
    targets = [_targets(document.tokens, rows) for document, rows in sample]
    labels = [document.rows[rows] for document, rows in sample]
    norm = None if head is None or isinstance(source, NormedSource) else head.norm
    following = np.concatenate([np.empty(0, np.int64), *(part[:, 1] for part in targets)])
    vocabulary = source.about.vocabulary or (head.vocabulary if head else 1 + max(counts, default=0))
    return Alignment(
        documents=len(sample),
        rows=len(following),
        unigram=_unigram(counts, following, vocabulary),
        stored=_mean_costs(labels, targets, head, None),
        normed=None if norm is None else _mean_costs(labels, targets, head, norm),
    )


def _mean_costs(
    labels: Sequence[NDArray[np.floating] | SparseLabels],
    targets: Sequence[NDArray[np.int64]],
    head: StoredHead | None,
    norm: FinalNorm | None,
) -> Costs:
    """Of rows and their targets [n, 3], by documents; hidden states of all documents pass the head together."""
    if head is not None and labels:
        hidden = np.concatenate([part for part in labels if isinstance(part, np.ndarray)])
        costs = [_costs(hidden if norm is None else norm(hidden), np.concatenate(targets), head)]
    else:
        costs = [_costs(part, wanted, None) for part, wanted in zip(labels, targets, strict=True)]
    return _means(np.concatenate([np.empty((0, 3)), *costs]))


def _means(costs: NDArray[np.float64]) -> Costs:
    """Of [n, 3] costs of tokens t, t + 1 and t + 2; NaN of none."""
    known = np.isfinite(costs)
    before, following, after = np.where(known, costs, 0).sum(0) / np.maximum(known.sum(0), 1)
    return Costs(float(following), float(before), float(after) if known[:, 2].any() else float("inf"))


def _check_fit(source: TextSource, head: StoredHead | None) -> None:
    """Raises UsageError unless the head is one that the rows can pass."""
    about = source.about
    if about.domain != "hidden":
        if head is not None:
            raise UsageError(f"{source.path}: holds {about.domain} labels, which need no head; leave out {head.path}")
        return
    if head is None:
        raise UsageError(f"{source.path}: holds hidden states; pass the output head of their model, as a file or folder of it")
    if head.width != about.width:
        raise UsageError(
            f"{source.path}: hidden states of {about.width} numbers, but {head.name} in {head.path} reads {head.width}; it is of another model"
        )
    if about.vocabulary is not None and about.vocabulary != head.vocabulary:
        raise UsageError(
            f"{source.path}: records a vocabulary of {about.vocabulary}, but {head.name} in {head.path} has {head.vocabulary}; pass vocab to both if "
            "one is padded"
        )


def _check_ids(source: TextSource, document: TextDocument, head: StoredHead | None) -> None:
    if head is not None and (top := int(document.tokens.max())) >= head.vocabulary:
        raise BadLabels(
            f"{source.path}: has token {top}, but {head.name} in {head.path} has a vocabulary of {head.vocabulary}: it is of another tokenizer"
        )


def _sample(source: TextSource, rows: int) -> list[tuple[TextDocument, NDArray[np.int64]]]:
    """Documents from the whole dump that have rows, each with some of its rows from its whole length."""
    candidates = np.flatnonzero(source.lengths > 1)
    picked = candidates[_spread(len(candidates), SAMPLE_DOCUMENTS)].tolist()
    each = max(1, rows // max(1, len(picked)))
    return [(source.read(index), _spread(int(source.lengths[index]) - 1, each)) for index in picked]


def _spread(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of the numbers below `count`, at equal distances."""
    numbers: NDArray[np.int64] = np.unique(np.linspace(0, max(0, count - 1), min(limit, count)).astype(np.int64))
    return numbers


def _targets(tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """[rows, 3] tokens t, t + 1 and t + 2 of each row t; -1: there is none."""
    padded = np.append(tokens, -1)
    return np.stack([padded[rows], padded[rows + 1], padded[rows + 2]], 1)


def _costs(rows: NDArray[np.floating] | SparseLabels, targets: NDArray[np.int64], head: StoredHead | None) -> NDArray[np.float64]:
    """[n, m] cross-entropy of each target [n, m] under its row, at most that of MIN_PROBABILITY; NaN of a target -1."""
    if isinstance(rows, SparseLabels):
        costs = _sparse_costs(rows, targets)
    elif head is None:
        logits = np.take_along_axis(rows, np.maximum(targets, 0), 1).astype(np.float64)
        costs = _log_sum_exp(rows.astype(np.float32))[:, None] - logits
    else:
        costs = _head_costs(rows, targets, head)
    return np.where(targets < 0, np.nan, np.minimum(costs, -np.log(MIN_PROBABILITY)))


def _head_costs(hidden: NDArray[np.floating], targets: NDArray[np.int64], head: StoredHead) -> NDArray[np.float64]:
    """As `_costs`, in chunks of the head's rows, so that no [n, V] exists."""
    total = np.full(len(hidden), -np.inf)
    logits = np.zeros(targets.shape)
    values, step = hidden.astype(np.float32), max(1, CHUNK_NUMBERS // max(1, len(hidden)))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, head.vocabulary, step):
            stop = min(start + step, head.vocabulary)
            part = _post(values @ head.rows(start, stop).T, head, slice(start, stop))
            total = np.logaddexp(total, _log_sum_exp(part))
            inside = (targets >= start) & (targets < stop)
            logits[inside] = np.take_along_axis(part, np.clip(targets - start, 0, stop - start - 1), 1)[inside]
    return total[:, None] - logits


def _post(logits: NDArray[np.float32], head: StoredHead, ids: slice) -> NDArray[np.float32]:
    """Bias, scale and soft cap of a product of hidden states with rows `ids` of the head."""
    if head.bias is not None:
        logits += head.bias[ids]
    logits *= np.float32(head.scale)
    return logits if head.soft_cap is None else np.float32(head.soft_cap) * np.tanh(logits / np.float32(head.soft_cap))


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n] of [n, m]; -inf is a probability of 0."""
    top = logits.max(1, keepdims=True)
    sums: NDArray[np.float64] = np.log(np.exp(logits - top).sum(1, dtype=np.float64)) + top[:, 0]
    return sums


def _sparse_costs(labels: SparseLabels, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """As `_costs`; tokens besides the k share what is left of 1, even if labels leave them nothing."""
    left = np.maximum(1 - labels.values.sum(1, dtype=np.float64), 0) / max(1, labels.others)
    matches = labels.ids[:, None, :] == targets[:, :, None]  # [n, m, k]
    stored = np.where(matches, labels.values[:, None, :], 0).sum(2, dtype=np.float64)
    probabilities = np.where(matches.any(2), stored, left[:, None])
    costs: NDArray[np.float64] = -np.log(np.maximum(probabilities, MIN_PROBABILITY))
    return costs


def _unigram(counts: Counter[int], tokens: NDArray[np.int64], vocabulary: int) -> float:
    total = sum(counts.values()) + vocabulary
    return float(np.mean([np.log(total / (counts[token] + 1)) for token in tokens.tolist()] or [np.inf]))


def _before_norm(source: TextSource, head: StoredHead | None, figures: Alignment) -> str:
    assert head is not None and head.norm is not None and figures.normed is not None
    return (
        f"{_measured(source, figures, figures.stored)}, and {figures.normed.next:.2f} if the final norm {head.norm.name} of {head.path} is applied "
        "first: these are states from before it; apply it with settle_norm, or save the states behind it"
    )


def _judge(source: TextSource, head: StoredHead | None, figures: Alignment, costs: Costs) -> None:
    """Raises BadLabels with the likeliest fault unless the costs are those of rows that belong to the next token."""
    start = _measured(source, figures, costs)
    for name, cost, fault in (("t", costs.before, "one too late"), ("t + 2", costs.after, "one too early")):
        if cost < min(costs.next - MARGIN, figures.unigram):
            other = "; states of an early layer also fit the token that they have read" if name == "t" and head is not None else ""
            raise BadLabels(
                f"{start}, and that of token {name} is {cost:.2f}: rows come {fault}; row t must be the distribution of token t + 1{other}"
            )
    if not costs.next < figures.unigram:
        raise BadLabels(f"{start}, but {figures.unigram:.2f} under a unigram model of the same tokens; {_fault(source, head)}")


def _measured(source: TextSource, figures: Alignment, costs: Costs) -> str:
    return (
        f"{source.path}: the mean cross-entropy of token t + 1 under row t is {costs.next:.2f} nats on {figures.rows} rows of {figures.documents} "
        "documents"
    )


def _fault(source: TextSource, head: StoredHead | None) -> str:
    """What may be wrong with rows that fit no token; other layers of the dump are tried."""
    if head is None:
        return "the rows are of another text, tokenizer or order of ids"
    for layer, other in sorted(source.other_layers.items(), reverse=True):
        figures = measure_alignment(other, head)
        costs = figures.normed if figures.normed is not None and figures.is_before_norm else figures.stored
        if costs.next < min(figures.unigram, costs.before, costs.after):
            behind = " behind the final norm" if figures.is_before_norm else ""
            return f"it is {costs.next:.2f} under layer {layer} of the dump{behind}, so layer {source.about.details.get('layer')} is not the last one"
    norm = "" if head.norm is not None else ", or from before the final norm, which was not found beside the head"
    return f"these are states of a layer that is not the last{norm}; or the head or the tokenizer is of another model"
