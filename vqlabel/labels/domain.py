"""What the numbers of a dump are: logits, probabilities, or neither. Sampled from all over it decide, not one batch."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, VqlabelError
from vqlabel.labels.source import ABSENT, NOWHERE, SUM_TOLERANCE, LabelSource, Support

BATCHES, ROWS = 16, 256  # looked at, and of each of them
NOISE = 0.01  # a probability that arithmetic put below 0 is no further below
FEW = 0.05  # share of rows, or of numbers, from which on they are a kind of their own
ALIKE = 0.9  # share of rows, at least, of what holds for nearly all
UNWRITTEN = 0.01  # share of rows that are all zero, at most: more is a dump that was never finished
CHANCE = 8  # classes from which on logits do not sum to 1 by chance


@dataclass(frozen=True)
class Sampled:
    """Of n rows that are finite and not all zero."""

    least: NDArray[np.float32]  # [n] smallest number
    most: NDArray[np.float32]  # [n] largest
    total: NDArray[np.float32]  # [n] their sum
    some: NDArray[np.int64]  # [n] how many are not 0
    log_total: NDArray[np.float32]  # [n] log of the sum of their exponentials
    lowest: NDArray[np.int64]  # [n] how many classes have the smallest number
    which: NDArray[np.int64]  # [n] sum of the squares of their indices: other classes have another
    above: NDArray[np.float32]  # [n] how far the next number lies above it
    classes: int

    @property
    def distributions(self) -> NDArray[np.bool_]:
        """[n] whether numbers are non-negative and sum to 1."""
        return (self.least >= 0) & (abs(self.total - 1) <= SUM_TOLERANCE)

    @property
    def kept(self) -> int | None:
        """How many numbers of a row are not 0, where that is the same for nearly all and no more than half of the classes."""
        kept = int(np.median(self.some))
        return kept if 2 * kept <= self.classes and (self.some == kept).mean() >= ALIKE else None

    @property
    def largest_probabilities(self) -> bool:
        """Whether they are distributions of which small probabilities were made 0. Outputs of sigmoids are cut nowhere, or by accident."""
        short = self.total < 1 - SUM_TOLERANCE
        cut = bool((self.least >= 0).all() and (self.total <= 1 + SUM_TOLERANCE).all() and (self.some[short] < self.classes).all())
        return cut and bool(short.any()) and (self.kept is not None or float(np.median(self.total)) >= 0.5)

    @property
    def renormalised(self) -> bool:
        """Whether they are distributions over as many classes each, as the k largest probabilities are once they sum to 1 again."""
        return self.kept is not None and bool(self.distributions.all())

    @property
    def fill(self) -> float | None:
        """What stands for classes that have no logit, where these are not the same ones in every row: one number far below all others."""
        far = self.above >= ABSENT
        if not far.any():
            return None
        numbers, counts = np.unique(self.least[far], return_counts=True)
        fill = numbers[counts.argmax()]
        filled = far & (self.least == fill)
        often = self.lowest[filled].sum() >= FEW * len(filled) * self.classes and counts.max() >= ALIKE * far.sum()
        alike = filled.all() and len(np.unique(self.which)) == 1
        return float(fill) if often and not alike else None


def settle_domain(source: LabelSource, named: str | None) -> None:
    """Hold a dump's domain against its numbers; probabilities of which only the k largest are not 0 become a `Support`.

    Args:
        source: just opened; its `domain` is what its files declare, or the usual one.
        named: the domain that the user named, which decides where the numbers leave it open.

    Raises:
        BadLabels: they are of another domain, or of none; with every way out that there is.
    """
    rows = _look(source)
    if not len(rows.total):
        return
    if source.domain == "probs":
        _check_probabilities(source, rows)
    else:
        _check_logits(source, rows, named)


def _look(source: LabelSource) -> Sampled:
    """Some rows of some batches, evenly spread; what cannot be read is refused when it is."""
    count = len(source)
    chosen = sorted({round(at * (count - 1) / max(1, BATCHES - 1)) for at in range(BATCHES)}) if count else []
    parts = [_describe(np.empty((0, source.classes), np.float32))] + [_look_at(source, at) for at in chosen]
    return Sampled(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Sampled) if f.name != "classes"},
        classes=source.classes,
    )


def _look_at(source: LabelSource, at: int) -> Sampled:
    labels = _readable(source, at)
    x = labels[:: max(1, -(-len(labels) // ROWS))].astype(np.float32)
    x = x[np.isfinite(x).all(1) & x.any(1)]
    if source.support is not None and source.domain != "probs":
        x[x == NOWHERE] = 0
    return _describe(x)


def _describe(x: NDArray[np.float32]) -> Sampled:
    """Of rows [n, C]."""
    with np.errstate(over="ignore"):
        top = x.max(1, initial=-np.inf)
        log_total = np.log(np.exp(x - top[:, None]).sum(1)) + top
        least = x.min(1, initial=np.inf)
        lowest = x == least[:, None]
        above = np.where(lowest, top[:, None], x).min(1, initial=np.inf) - least
        which = lowest @ np.arange(x.shape[1], dtype=np.int64) ** 2
        return Sampled(least, top, x.sum(1), (x != 0).sum(1), log_total, lowest.sum(1), which, above, x.shape[1])


def _check_probabilities(source: LabelSource, rows: Sampled) -> None:
    """Raises BadLabels where `rows` are none; sets the source's support where only the largest were kept."""
    path = source.path
    _refuse_percentages(source, rows)
    if bool((rows.least < 0).any()):
        _refuse_noise(source, rows)
        raise BadLabels(
            f"{path}: numbers from {rows.least.min():.4g} to {rows.most.max():.4g}, so these are no probabilities; pass "
            "--domain logits, which log-probabilities take as well, or for logits of a teacher of several labels an image --domain sigmoid"
        )
    if source.support is not None:
        return
    if rows.largest_probabilities or rows.renormalised:
        most = _most(source, 0)
        source.support = Support(k=most, rest="zero")
        sums = "sum to 1" if rows.renormalised else "sum to less than 1"
        source.notes.append(
            f"{path}: rows {sums}, and all but {most} numbers are 0: read as the {most} largest probabilities of a label"
        )
    elif rows.distributions.mean() < 0.5:  # else single rows: refused with their place when they are read
        _refuse_sums(source, rows)


def _most(source: LabelSource, fill: float) -> int:
    """Of all labels, the most numbers in one that are not `fill`."""
    return max(int((_readable(source, at) != fill).sum(1).max(initial=0)) for at in range(len(source)))


def _readable(source: LabelSource, at: int) -> NDArray[np.floating]:
    """[n, C] labels of a batch, before they are held against a domain; none of one that cannot be read, which is refused in its turn."""
    try:
        labels = source.load(at)[0].labels
    except VqlabelError:
        labels = np.empty((0, 0), np.float32)
    return labels if labels.shape[1] == source.classes else np.empty((0, source.classes), np.float32)


def _check_logits(source: LabelSource, rows: Sampled, named: str | None) -> None:
    """Raises BadLabels where `rows` are probabilities, or may be, unless the user has named the domain."""
    path, ones = source.path, rows.distributions
    if rows.largest_probabilities:
        raise BadLabels(
            f"{path}: rows have up to {rows.some.max()} of {rows.classes} numbers above 0 and sum to {rows.total.min():.4g} to 1: the largest "
            "probabilities of a label; pass --domain probs, which takes the rest for 0"
        )
    if ones.mean() >= 0.5 or (ones.mean() >= FEW and rows.classes >= CHANCE):
        others = len(ones) - int(ones.sum())
        end = f"; {others:,} rows do not: mend those, or leave them out" if others else ""
        raise BadLabels(
            f"{path}: {int(ones.sum()):,} of {len(ones):,} rows looked at are non-negative and sum to 1, so these are probabilities; "
            f"pass --domain probs{end}"
        )
    if source.support is not None:
        return
    if source.domain == "logits" and (fill := rows.fill) is not None:
        most = _most(source, fill)
        source.support = Support(k=most, rest="zero")
        source.notes.append(
            f"{path}: rows have logits for up to {most} classes, other ones in each, and {fill:.6g} for the rest, at least "
            f"{ABSENT:g} below them: read as labels of these classes alone"
        )
        return
    _refuse_percentages(source, rows)
    if bool((rows.least < 0).any()):
        _refuse_noise(source, rows)
        if (
            source.domain == "logits"
            and (rows.most <= SUM_TOLERANCE).all()
            and (abs(rows.log_total) <= SUM_TOLERANCE).mean() >= ALIKE
        ):
            source.notes.append(
                f"{path}: log-probabilities, which work as logits: students at T = 1 see the teacher's probabilities"
            )
        return
    if rows.most.max() <= 1 and named != "logits":
        _refuse_sums(source, rows)
    if rows.kept is not None and named != "logits":
        raise BadLabels(
            f"{path}: rows have {rows.kept} of {rows.classes} numbers above 0 and zeros elsewhere, as if only the largest were kept; a logit of 0 "
            "is a class that counts: write -10000 for classes that were not kept, np.where(x == 0, -1e4, x), or, of numbers that are a share "
            "of 1 or of 100, make rows sum to 1 at most and pass --domain probs"
        )


def _refuse_percentages(source: LabelSource, rows: Sampled) -> None:
    hundreds = (rows.least >= 0) & (abs(rows.total - 100) <= 100 * SUM_TOLERANCE)
    if hundreds.mean() >= 0.5:
        raise BadLabels(
            f"{source.path}: {int(hundreds.sum()):,} of {len(hundreds):,} rows looked at are non-negative and sum to 100, so these are "
            "percentages; divide them by 100 and pass --domain probs, or store the teacher's logits"
        )


def _refuse_noise(source: LabelSource, rows: Sampled) -> None:
    """Probabilities, some of which arithmetic has put below 0."""
    if rows.least.min() >= -NOISE and (abs(rows.total - 1) <= SUM_TOLERANCE).mean() >= 0.5:
        raise BadLabels(
            f"{source.path}: rows sum to 1, and the smallest number is {rows.least.min():.4g}: probabilities that rounding put below 0; "
            "clip them, np.clip(p, 0, None), and pass --domain probs"
        )


def _refuse_sums(source: LabelSource, rows: Sampled) -> None:
    """Non-negative numbers that are neither logits nor probabilities as they stand."""
    total = rows.total
    raise BadLabels(
        f"{source.path}: numbers from {rows.least.min():.4g} to {rows.most.max():.4g}, rows that sum to {total.min():.4g} to {total.max():.4g}: "
        "neither probabilities of one distribution nor plainly logits; of a teacher of several labels an image (a sigmoid a class) save the "
        "logits, log(p / (1 - p)), and pass --domain sigmoid; of scaled or cut probabilities make rows sum to 1, p / p.sum(1, "
        "keepdims=True), and pass --domain probs; if they are logits, such as cosines, pass --domain logits"
    )


@dataclass(kw_only=True)
class FlatRows:
    """Counts rows that are the same for all classes: a student learns nothing of them, and a codec cannot be judged by them."""

    path: Path
    rows: int = 0
    zero: int = 0  # such as an array has that was made for labels, and never written
    alike: int = 0  # some other number

    def add(self, labels: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Count in labels [n, C]; returns [n], which of them tell classes apart."""
        flat: NDArray[np.bool_] = labels[:, 0] == labels[:, -1]
        flat[flat] = (labels[flat] == labels[flat, :1]).all(1)
        zero = int((labels[flat, 0] == 0).sum())
        self.rows, self.zero, self.alike = self.rows + len(labels), self.zero + zero, self.alike + int(flat.sum()) - zero
        return ~flat

    def check(self) -> None:
        """Raises BadLabels where so many rows are all zero that the dump was never finished, or none tells classes apart."""
        if self.rows and self.zero > UNWRITTEN * self.rows:
            raise BadLabels(f"{self.path}: {self._zeros()} Label them again, or leave them out")
        if self.rows and self.zero + self.alike == self.rows:
            raise BadLabels(f"{self.path}: all {self.rows:,} rows have one number for all classes, so they are labels of nothing")

    def notes(self) -> list[str]:
        """A sentence for each kind that there is."""
        found = [f"{self.path}: {self._zeros()}"] if self.zero else []
        return found + (
            [f"{self.path}: {self.alike:,} of {self.rows:,} rows have one number for all classes"] if self.alike else []
        )

    def _zeros(self) -> str:
        return f"{self.zero:,} of {self.rows:,} rows are all zero: labels that were never written?"
