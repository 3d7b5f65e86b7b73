"""Texts that a user passes as options -> values."""

import re
from typing import Any

from typer.core import TyperCommand

from vqlabel.errors import UsageError

SCHEDULE_STEPS = 4  # temperatures that approximate a schedule; each adds a KL to the training loss
MSE_TEMPERATURE = 100.0  # T^2 * KL approaches squared error of logits as T grows; above this, float32 loses the differences
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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


def read_size(text: str) -> int:
    """ "5MB" -> 5,000,000 bytes; kB, MB and GB are decimal, KiB, MiB and GiB binary.

    Raises:
        UsageError: `text` is not a number with a known unit.
    """
    number = text.strip().rstrip("BKMGkmgib").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"--bytes {text!r}: must be a number of bytes, such as 500000, 500kB or 5MB") from None


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
    """Parse --bits of a comparison, whose values `BitsCommand` has separated: ["8,16", "32"] -> [8, 16, 32].

    Raises:
        UsageError: a value is not an integer.
    """
    words = read_words(values)
    if words is not None and not (words and all(word.isdecimal() for word in words)):
        raise UsageError(f"--bits {' '.join(values or ())!r}: must be integers, such as 8 16 32 or 8,16,32")
    return None if words is None else [int(word) for word in words]


class BitsCommand(TyperCommand):
    """A command that accepts `--bits 8 16 32` for `--bits 8 --bits 16 --bits 32`: Typer's take one value each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        expanded, expects = list[str](), ""  # what the next word may be: the value of --bits, a further number, or neither
        for word in args:
            is_further = expects == "further" and re.fullmatch(r"[\d,]+", word) is not None
            expanded += ["--bits", word] if is_further else [word]
            if word == "--bits":
                expects = "value"
            else:
                expects = "further" if is_further or expects == "value" or word.startswith("--bits=") else ""
        return super().parse_args(ctx, expanded)
