"""The values of a dump -> its domain: logits, probabilities, or neither.

A sample of rows from the whole dump decides, not one batch.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, VqlabelError
from vqlabel.labels.batch import ABSENT, NOWHERE, Support
from vqlabel.labels.checks import SUM_TOLERANCE
from vqlabel.labels.source import LabelSource
from vqlabel.labels.sparse import every_value

SAMPLED_BATCHES, SAMPLED_ROWS = 16, 256  # batches in the sample, evenly spread over the dump; rows of each of them
MAX_ROUNDING = 0.01  # probabilities that arithmetic made negative are above -0.01; lower values are not probabilities
MIN_GROUP = 0.05  # share of rows, or of values, from which a deviating group is not an accident
NEARLY_ALL = 0.9  # share of rows that must agree for a property to be taken as one of the whole dump
MIN_CLASSES = 8  # with fewer classes, rows of logits sum to 1 by chance too often to count as probabilities


@dataclass(frozen=True)
class RowStats:
    """Statistics of n sampled rows that are finite and not all zero."""

    min: NDArray[np.float32]  # [n] smallest value
    max: NDArray[np.float32]  # [n] largest value
    total: NDArray[np.float32]  # [n] sum of the values
    nonzero: NDArray[np.int64]  # [n] number of values that are not 0
    log_total: NDArray[np.float32]  # [n] logsumexp of the values
    min_count: NDArray[np.int64]  # [n] number of classes that have the smallest value
    min_classes: NDArray[np.int64]  # [n] sum of the squared ids of these classes: a cheap hash of which classes they are
    min_gap: NDArray[np.float32]  # [n] distance from the smallest value to the second smallest different one
    classes: int

    @property
    def distributions(self) -> NDArray[np.bool_]:
        """[n] whether a row is non-negative and sums to 1."""
        return (self.min >= 0) & (abs(self.total - 1) <= SUM_TOLERANCE)

    @property
    def kept(self) -> int | None:
        """The number of nonzero values per row if nearly all rows have the same and it is at most C / 2; else None."""
        kept = int(np.median(self.nonzero))
        return kept if 2 * kept <= self.classes and (self.nonzero == kept).mean() >= NEARLY_ALL else None

    @property
    def truncated_probabilities(self) -> bool:
        """Whether the rows are probabilities with the small ones set to 0, so that some rows sum to less than 1.

        Outputs of sigmoids, whose sums differ too, are excluded: they are not cut to a fixed number of classes.
        """
        short = self.total < 1 - SUM_TOLERANCE
        in_range = bool((self.min >= 0).all() and (self.total <= 1 + SUM_TOLERANCE).all())
        cut = in_range and bool((self.nonzero[short] < self.classes).all())
        return cut and bool(short.any()) and (self.kept is not None or float(np.median(self.total)) >= 0.5)

    @property
    def renormalised(self) -> bool:
        """Whether the rows are normalised top-k probabilities: distributions over equally many classes."""
        return self.kept is not None and bool(self.distributions.all())

    @property
    def fill(self) -> float | None:
        """The logit of classes that were not stored, far below all others, at different classes per row; None: none."""
        far = self.min_gap >= ABSENT
        if not far.any():
            return None
        values, counts = np.unique(self.min[far], return_counts=True)
        fill = values[counts.argmax()]
        filled = far & (self.min == fill)
        frequent = self.min_count[filled].sum() >= MIN_GROUP * len(filled) * self.classes and counts.max() >= NEARLY_ALL * far.sum()
        same_classes = filled.all() and len(np.unique(self.min_classes)) == 1
        return float(fill) if frequent and not same_classes else None


def settle_domain(source: LabelSource, requested: str | None) -> None:
    """Check a dump's domain against its values; set its support if its labels are top-k ones, filled up to C classes.

    Args:
        source: just opened; its `domain` is what its files declare, or the layout's default.
        requested: the domain that the user passed; it decides where the values are ambiguous.

    Raises:
        BadLabels: the values are of the other domain, or of neither; the message lists the remedies.
    """
    rows = _sample(source)
    if not len(rows.total):
        return
    if source.domain == "probs":
        _check_probabilities(source, rows)
    else:
        _check_logits(source, rows, requested)


def _sample(source: LabelSource) -> RowStats:
    """Statistics of some rows of some batches. Unreadable batches are skipped: reading them later raises the error."""
    count = len(source)
    chosen = sorted({round(i * (count - 1) / max(1, SAMPLED_BATCHES - 1)) for i in range(SAMPLED_BATCHES)}) if count else []
    parts = [_statistics(np.empty((0, source.classes), np.float32), source.classes)] + [
        _sample_batch(source, index) for index in chosen
    ]
    columns = [field.name for field in fields(RowStats) if field.name != "classes"]
    return RowStats(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}, classes=source.classes)


def _sample_batch(source: LabelSource, index: int) -> RowStats:
    labels = _readable_values(source, index)
    rows = labels[:: max(1, -(-len(labels) // SAMPLED_ROWS))].astype(np.float32)
    rows = rows[np.isfinite(rows).all(1) & rows.any(1)]
    if source.support is not None and source.domain != "probs":
        rows[rows == NOWHERE] = 0
    return _statistics(rows, source.classes)


def _statistics(rows: NDArray[np.float32], classes: int) -> RowStats:
    """Statistics of rows [n, C]; of top-k labels [n, k + 1], see `_readable_values`."""
    with np.errstate(over="ignore"):
        largest, smallest = rows.max(1, initial=-np.inf), rows.min(1, initial=np.inf)
        is_smallest = rows == smallest[:, None]
        return RowStats(
            min=smallest,
            max=largest,
            total=rows.sum(1),
            nonzero=(rows != 0).sum(1),
            log_total=np.log(np.exp(rows - largest[:, None]).sum(1)) + largest,
            min_count=is_smallest.sum(1),
            min_classes=is_smallest @ np.arange(rows.shape[1], dtype=np.int64) ** 2,
            min_gap=np.where(is_smallest, largest[:, None], rows).min(1, initial=np.inf) - smallest,
            classes=classes,
        )


def _check_probabilities(source: LabelSource, rows: RowStats) -> None:
    """Raises BadLabels if `rows` are not probabilities; sets the source's support if they are top-k ones."""
    path = source.path
    _refuse_percentages(source, rows)
    if bool((rows.min < 0).any()):
        _refuse_negative_rounding(source, rows)
        raise BadLabels(
            f"{path}: values range from {rows.min.min():.4g} to {rows.max.max():.4g}, so these are not probabilities; pass "
            "--domain logits (also for log-probabilities), or --domain sigmoid for logits of a multi-label teacher"
        )
    if source.support is not None:
        return
    if rows.truncated_probabilities or rows.renormalised:
        k = _max_kept(source, 0)
        source.about = replace(source.about, support=Support(k=k, rest="zero"))
        sums = "sum to 1" if rows.renormalised else "sum to less than 1"
        source.notes.append(f"{path}: rows {sums} and all but {k} values are 0: read as top-{k} probabilities")
    elif rows.distributions.mean() < 0.5:  # otherwise single bad rows, which are refused with their position when they are read
        _refuse_sums(source, rows)


def _max_kept(source: LabelSource, fill: float) -> int:
    """The largest number of values in one label that differ from `fill`; reads all labels."""
    return max(int((_readable_values(source, index) != fill).sum(1).max(initial=0)) for index in range(len(source)))


def _readable_values(source: LabelSource, index: int) -> NDArray[np.floating]:
    """[n, C] labels of a batch before its domain is checked; no rows if the batch cannot be read.

    Of sparse labels [n, k + 1]: their other classes are one column. It counts as 0 in logits, and the sums of top-k
    probabilities, which their reader checks, are not looked at.
    """
    try:
        labels = source.load(index)[0].labels
    except VqlabelError:
        labels = np.empty((0, 0), np.float32)
    if labels.shape[1] != source.classes:
        return np.empty((0, source.classes), np.float32)
    values: NDArray[np.floating] = every_value(labels)
    return values


def _check_logits(source: LabelSource, rows: RowStats, requested: str | None) -> None:
    """Raises BadLabels if `rows` are probabilities, or may be and the user has not passed the domain.

    Sets the source's support if its logits were filled up to C classes.
    """
    _refuse_as_logits(source, rows)
    if source.support is not None or _set_support_of_filled(source, rows):
        return
    _refuse_percentages(source, rows)
    if bool((rows.min < 0).any()):
        _refuse_negative_rounding(source, rows)
        _note_log_probabilities(source, rows)
        return
    if rows.max.max() <= 1 and requested != "logits":
        _refuse_sums(source, rows)
    if rows.kept is not None and requested != "logits":
        raise BadLabels(
            f"{source.path}: rows have {rows.kept} of {rows.classes} values above 0 and zeros elsewhere, as if only the top classes were kept; "
            "but a logit of 0 gives its class probability: write -10000 for classes that were not kept, np.where(x == 0, -1e4, x), or, if "
            "the values are shares of 1 or of 100, scale rows to sum to at most 1 and pass --domain probs"
        )


def _refuse_as_logits(source: LabelSource, rows: RowStats) -> None:
    """Raises BadLabels if the rows are top-k probabilities, or distributions."""
    distributions = rows.distributions
    if rows.truncated_probabilities:
        raise BadLabels(
            f"{source.path}: rows have up to {rows.nonzero.max()} of {rows.classes} values above 0 and sum to {rows.total.min():.4g} to 1: "
            "top-k probabilities; pass --domain probs, which reads the other classes as 0"
        )
    share = distributions.mean()
    if share >= 0.5 or (share >= MIN_GROUP and rows.classes >= MIN_CLASSES):
        others = len(distributions) - int(distributions.sum())
        remedy = f"; {others:,} rows do not: correct them, or leave them out" if others else ""
        raise BadLabels(
            f"{source.path}: {int(distributions.sum()):,} of {len(distributions):,} sampled rows are non-negative and sum to 1, so these are "
            f"probabilities; pass --domain probs{remedy}"
        )


def _set_support_of_filled(source: LabelSource, rows: RowStats) -> bool:
    """Set the source's support if its logits were filled up to C classes; returns whether they were."""
    fill = rows.fill if source.domain == "logits" else None
    if fill is None:
        return False
    k = _max_kept(source, fill)
    source.about = replace(source.about, support=Support(k=k, rest="zero"))
    source.notes.append(
        f"{source.path}: rows have logits for up to {k} classes, which differ from row to row, and {fill:.6g} for the others, at least "
        f"{ABSENT:g} below: read as top-{k} logits"
    )
    return True


def _note_log_probabilities(source: LabelSource, rows: RowStats) -> None:
    in_range = bool((rows.max <= SUM_TOLERANCE).all()) and (abs(rows.log_total) <= SUM_TOLERANCE).mean() >= NEARLY_ALL
    if source.domain == "logits" and in_range:
        source.notes.append(
            f"{source.path}: log-probabilities, which serve as logits: at T = 1 students get the teacher's probabilities"
        )


def _refuse_percentages(source: LabelSource, rows: RowStats) -> None:
    percentages = (rows.min >= 0) & (abs(rows.total - 100) <= 100 * SUM_TOLERANCE)
    if percentages.mean() >= 0.5:
        raise BadLabels(
            f"{source.path}: {int(percentages.sum()):,} of {len(percentages):,} sampled rows are non-negative and sum to 100, so these are "
            "percentages; divide them by 100 and pass --domain probs, or save the teacher's logits"
        )


def _refuse_negative_rounding(source: LabelSource, rows: RowStats) -> None:
    """Raises BadLabels for probabilities of which rounding made some negative."""
    if rows.min.min() >= -MAX_ROUNDING and (abs(rows.total - 1) <= SUM_TOLERANCE).mean() >= 0.5:
        raise BadLabels(
            f"{source.path}: rows sum to 1 and the smallest value is {rows.min.min():.4g}: probabilities that rounding made negative; "
            "clip them, np.clip(p, 0, None), and pass --domain probs"
        )


def _refuse_sums(source: LabelSource, rows: RowStats) -> None:
    """Raises BadLabels for non-negative values that are neither clearly logits nor probabilities."""
    raise BadLabels(
        f"{source.path}: values range from {rows.min.min():.4g} to {rows.max.max():.4g}, rows sum to {rows.total.min():.4g} to "
        f"{rows.total.max():.4g}: neither probabilities of one distribution nor clearly logits; for a multi-label teacher (a sigmoid per class) "
        "save the logits, log(p / (1 - p)), and pass --domain sigmoid; for scaled or truncated probabilities normalise rows to sum to 1, "
        "p / p.sum(1, keepdims=True), and pass --domain probs; for logits, such as cosine similarities, pass --domain logits"
    )
