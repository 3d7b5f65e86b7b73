"""Texts that a user passes as options -> values."""

import re

from vqlabel.errors import UsageError

SCHEDULE_STEPS = 4  # temperatures that approximate a schedule; each adds a KL to the training loss
MSE_TEMPERATURE = 100.0  # T^2 * KL approaches squared error of logits as T grows; above this, float32 loses the differences
UNITS = {"": 1, "B": 1}  # of a size, in upper case -> bytes
for _power, _letter in enumerate("KMGT", start=1):
    UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}I": 1024**_power, f"{_letter}IB": 1024**_power}


def read_exact_classes(text: str) -> int | None:
    """ "2" -> 2, "auto" -> None.

    Raises:
        UsageError: `text` is neither a number nor "auto".
    """
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--exact-classes {text!r}: must be a number of classes, or auto")
    return int(text)


def read_temperature(text: str | None) -> tuple[float, ...] | None:
    """Parse --temperature.

    "auto" -> None; "1,4,20" -> these temperatures; "20:2", a schedule from 20 to 2 -> SCHEDULE_STEPS temperatures in
    geometric progression; "mse" -> MSE_TEMPERATURE.

    Raises:
        UsageError: `text` has another form.
    """
    if text is None or text == "auto":
        return None
    if text == "mse":
        return (MSE_TEMPERATURE,)
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return tuple(float(t) for t in text.split(","))
        start, ratio = float(first), float(last) / float(first)
        return tuple(round(start * ratio ** (step / (SCHEDULE_STEPS - 1)), 4) for step in range(SCHEDULE_STEPS))
    except (ValueError, ZeroDivisionError, TypeError):
        raise UsageError(
            f"--temperature {text!r}: must be comma-separated numbers such as 1,4,20, a schedule such as 20:2, auto, or mse"
        ) from None


def read_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """ "0.5" or "0.485,0.456,0.406" -> the numbers.

    Raises:
        UsageError: `text` has another form.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: must be one number, or three comma-separated numbers such as 0.485,0.456,0.406"
        ) from None


def read_size(text: str, option: str = "--bytes") -> int:
    """ "5MB" or "5M" -> 5,000,000 bytes, "5MiB" -> 5,242,880; letters may be small, a blank may precede the unit.

    Raises:
        UsageError: `text` is not a positive number with a known unit.
    """
    match = re.fullmatch(r"([\d_,.]+(?:e\d+)?) *([a-z]*)", text.strip(), re.IGNORECASE)
    try:
        if match is None:
            raise ValueError
        return int(float(match[1].replace(",", "")) * UNITS[match[2].upper()])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(
            f"{option} {text!r}: must be a number of bytes, such as 500000, 500kB, 5M (5,000,000) or 5MiB (5,242,880)"
        ) from None


def read_range(option: str, text: str) -> tuple[float, float]:
    """ "0.5,1" -> (0.5, 1.0).

    Raises:
        UsageError: `text` has another form.
    """
    numbers = read_numbers(option, text) or ()
    if len(numbers) != 2:
        raise UsageError(f"{option} {text}: must be two numbers, such as {option} 0.08,1 or {option} 0.08 1")
    return numbers[0], numbers[1]


def read_span(text: str | None) -> tuple[int | None, int | None]:
    """Parse --records: "10:20" -> (10, 20), "500:" -> (500, None); None: all records.

    Raises:
        UsageError: `text` has another form.
    """
    if text is None:
        return None, None
    try:
        first, stop = text.split(":")
        return int(first) if first else None, int(stop) if stop else None
    except ValueError:
        raise UsageError(f"--records {text!r}: must be first:stop, such as 0:1000, 500: or :-100") from None


def read_words(values: list[str] | None) -> list[str] | None:
    """["a,b", "c d"], the values of a repeated option -> [a, b, c, d]."""
    return None if values is None else [word for value in values for word in value.replace(",", " ").split()]


def read_rates(values: list[str] | None) -> list[int] | None:
    """Parse --bits of a comparison, whose values may be lists: ["8,16", "32"] -> [8, 16, 32].

    Raises:
        UsageError: a value is not an integer.
    """
    words = read_words(values)
    if words is not None and not (words and all(word.isdecimal() for word in words)):
        raise UsageError(f"--bits {' '.join(values or ())!r}: must be integers, such as 8 16 32 or 8,16,32")
    return None if words is None else [int(word) for word in words]
