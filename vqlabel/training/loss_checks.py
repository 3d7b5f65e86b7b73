"""Checks of the arguments of losses and temperature schedules."""

import math
from typing import Any

from torch import Tensor

from vqlabel.errors import UsageError, require
from vqlabel.type_checks import check_type


def check_pair(student_logits: Tensor, labels: Tensor) -> None:
    """Refuse shapes that a loss would broadcast without an error."""
    check_argument_type("student_logits", student_logits, Tensor)
    check_argument_type("labels", labels, Tensor)
    if labels.dim() != 2 or student_logits.shape != labels.shape:
        shapes = f"student_logits have shape {list(student_logits.shape)}, labels {list(labels.shape)}"
        raise UsageError(f"{shapes}; both must be [n, C], one row per label")


def check_temperature(name: str, value: float) -> None:
    check_argument_type(name, value, float)
    require(0 < value < math.inf, name, value, "must be above 0")


def check_argument_type(name: str, value: Any, kind: Any) -> None:
    """`check_type`, which is not called for the exact type, so that torch.compile need not trace it."""
    if type(value) is not kind:
        check_type(name, value, kind)
