"""Checks of the labels of one batch: finite values, and values of the dump's domain."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.batch import Support
from vqlabel.labels.sparse import Labels, class_at, every_value, row_sums

SUM_TOLERANCE = 0.02  # of a sum of probabilities; fp16 probabilities of 100,000 classes sum to 1 within it
MIN_KNOWN_MASS = 1e-6  # probability that the stored classes of a top-k label must have


def check_finite(labels: Labels, name: str) -> None:
    """Raises BadLabels with the batch's `name`, row and class if a label [n, C] contains NaN or Inf."""
    values = every_value(labels)
    if values.dtype == np.float16:  # exponent bits: eight times as fast as isfinite on halves
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00
    else:
        bad = ~np.isfinite(values)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        value = values[row, column]
        remedy = "write -10000 for a masked class; its probability is 0, too" if value < 0 else "regenerate or drop this row"
        raise BadLabels(f"{name}, row {row}: class {class_at(labels, row, column)} is {value}; labels must be finite: {remedy}")


def check_domain(labels: Labels, domain: str, name: str, support: Support | None = None) -> None:
    """Raises BadLabels if labels [n, C] of a batch are not of the dump's domain.

    Args:
        domain: as `labels.domain.settle_domain` determined it from more than one batch.
        name: of the batch, for messages.
        support: of top-k labels with rest "zero", whose k probabilities may sum to less than 1.
    """
    values = every_value(labels)
    negative = bool(np.signbit(values).any())
    if domain != "probs" and (negative or not len(values)):
        return
    total = row_sums(labels, np.float32)
    if domain == "probs":
        _check_probabilities(values, total, negative, name, support)
    elif (abs(total - 1) <= SUM_TOLERANCE).all():
        raise BadLabels(f"{name}: every row is non-negative and sums to 1, so these are probabilities; pass --domain probs")


def _check_probabilities(
    values: NDArray[np.floating], total: NDArray[np.float32], negative: bool, name: str, support: Support | None
) -> None:
    """`values`: see `every_value`.

    `negative`: whether any sign bit is set, without which no value is below 0; -0 is not below 0.
    """
    min_total = MIN_KNOWN_MASS if support is not None and support.rest == "zero" else 1 - SUM_TOLERANCE
    bad = ~((total >= min_total) & (total <= 1 + SUM_TOLERANCE))
    if negative:
        bad |= (values < 0).any(1)
    if not bad.any():
        return
    row = int(bad.argmax())
    if not values[row].any():
        raise BadLabels(
            f"{name}, row {row}: all zero ({int((~values.any(1)).sum())} of the {len(values)} rows of this batch): were these labels "
            "never written? Label these images again, or leave them out"
        )
    raise BadLabels(
        f"{name}, row {row}: sums to {total[row]:.4g} with smallest value {values[row].min():.4g}, so it is not a distribution, unlike "
        "other rows of this dump; correct it, or leave it out"
    )
