"""The options by which fit, pack and tune are told what codec to make: declared once, handed over as one `FitConfig`."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vqlabel.cli.terminal import note
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError

Temperature = Annotated[
    str | None,
    typer.Option(
        help="temperatures of the student, 1,4,20, or a schedule 20:2, or mse: squared error of logits; by default the layout's "
        "(sre2l: 20), else 1,4,20"
    ),
]
USED = {"raw": (), "topk": ("slots", "bits"), "sparse": ("slots", "bits")}  # options of a fit by which these codecs are made
ALWAYS_USED = ("codec", "temperature", "seed", "device", "bytes", "ratio")  # figures are at the temperatures
OPTIONS: dict[str, Any] = {
    "ratio": Annotated[
        float | None, typer.Option(help="budget: so many times smaller than fp16, all but augmentation and order counted")
    ],
    "bytes": Annotated[str | None, typer.Option(help="budget: such as 500kB or 5MB, all but augmentation and order counted")],
    "bits": Annotated[
        int | None, typer.Option(help="code bits per label (128 where no budget is named); codec and header come on top")
    ],
    "temperature": Temperature,
    "prior": Annotated[
        bool | None,
        typer.Option("--prior/--no-prior", help="predict labels from image, partner, lambda, crop; by default where that helps"),
    ],
    "slots": Annotated[int | None, typer.Option(help="codes per label, m (topk: classes kept)")],
    "variable_rate": Annotated[
        bool,
        typer.Option(
            "--variable-rate", help="as many slots for every label as pay, --bits on average, --slots the most; a count is added"
        ),
    ],
    "codebook_size": Annotated[int | None, typer.Option(help="vectors in a codebook, k")],
    "code_width": Annotated[
        int | None, typer.Option(help="width of a code vector, d_c: cuts the latent into groups; residual slots by default")
    ],
    "latent": Annotated[int | None, typer.Option(help="width of the latent, d_h")],
    "weight_bits": Annotated[int | None, typer.Option(help="bits of a stored number of codebooks, decoder and prior, 2..8")],
    "image_width": Annotated[int | None, typer.Option(help="numbers that the prior keeps of an image")],
    "hidden": Annotated[int | None, typer.Option(help="units in the prior's hidden layer")],
    "exact_classes": Annotated[
        str,
        typer.Option(help="classes kept exactly, before the slots: least KL at T = 1, exact top-1; auto: as many as pay in KL"),
    ],
    "gain": Annotated[
        float | None,
        typer.Option(help="how far labels lie from their mean; by default unbiased, for students; 1: calibrated, the least KL"),
    ],
    "epochs": Annotated[int | None, typer.Option(help="passes of training over the labels, in each part of a fit")],
    "seed": Annotated[int, typer.Option(help="same seed, same bytes on the same machine with the same number of threads")],
    "device": Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")],
}
SCHEDULE = 4  # temperatures that stand for a schedule
SQUARED = 100.0  # temperature at which T^2 * KL is squared error of logits, and single precision still tells labels apart
LAYOUTS = "arrays, sre2l, lpld, lpqld, gvbsm, edc, fkd, tinyvit or tensor"  # not asked of labels/: help loads no NumPy
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command`, which takes a `FitConfig` named `config`, the options above instead."""
    known = {field.name: field.default for field in dataclasses.fields(FitConfig)} | {"bits": None, "exact_classes": "0"}
    kept = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "config"]
    told = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=known[name], annotation=kind)
        for name, kind in OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in OPTIONS}
        for sentence in unused(given.get("codec"), values, known):
            note(sentence)
        command(**given, config=_config(values))

    del run.__wrapped__  # typer would read the signature, and the hints, of what is wrapped
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept]
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    optional = [p for p in parameters if p.default is not inspect.Parameter.empty]
    run.__signature__ = inspect.Signature([*required, *told, *optional])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*required, *told, *optional]}
    return run


class BitsCommand(TyperCommand):
    """Takes `--bits 8 16 32` for `--bits 8 --bits 16 --bits 32`: an option of typer's has one value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread, follows = list[str](), ""
        for word in args:
            more = follows == "more" and re.fullmatch(r"[\d,]+", word) is not None
            spread += ["--bits", word] if more else [word]
            if word == "--bits":
                follows = "value"
            else:
                follows = "more" if more or follows == "value" or word.startswith("--bits=") else ""
        return super().parse_args(ctx, spread)


def unused(codec: object, values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The options of a fit that were given, and of which the named codec makes no use, each as a sentence."""
    if codec not in USED:
        return []
    used = USED[str(codec)]
    why = f"takes {' and '.join('--' + name for name in used)}" if used else "stores labels as they are"
    given = [name for name, value in values.items() if name not in (*used, *ALWAYS_USED) and value != defaults[name]]
    return [f"--{name.replace('_', '-')} {values[name]} has no effect: --codec {codec} {why}" for name in given]


def _config(values: dict[str, Any]) -> FitConfig:
    values["exact_classes"] = read_exact_classes(values["exact_classes"])
    values["temperature"] = read_temperature(values["temperature"])
    values["bytes"] = None if values["bytes"] is None else read_size(values["bytes"])
    return FitConfig(**values)


def read_exact_classes(text: str) -> int | None:
    """ "2" -> 2, "auto" -> None.

    Raises:
        UsageError: something else.
    """
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--exact-classes {text!r}: must be a number of classes, or auto")
    return int(text)


def read_temperature(text: str | None) -> tuple[float, ...] | None:
    """ "1,4,20" -> its numbers; "20:2", a student's schedule from 20 to 2 -> 4 steps of one ratio; "mse" -> SQUARED.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    if text == "mse":
        return (SQUARED,)
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return tuple(float(t) for t in text.split(","))
        start, ratio = float(first), float(last) / float(first)
        return tuple(round(start * ratio ** (step / (SCHEDULE - 1)), 4) for step in range(SCHEDULE))
    except (ValueError, ZeroDivisionError, TypeError):
        raise UsageError(
            f"--temperature {text!r}: must be numbers with commas between them, such as 1,4,20, a schedule such as 20:2, or mse"
        ) from None


def read_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """ "0.5" or "0.485,0.456,0.406" -> its numbers.

    Raises:
        UsageError: something else.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: must be one number or three with commas between them, such as 0.485,0.456,0.406"
        ) from None


def read_size(text: str) -> int:
    """ "5MB" -> 5,000,000; decimal units, or KiB, MiB, GiB.

    Raises:
        UsageError: no number with a known unit.
    """
    number = text.strip().rstrip("BKMGkmgib").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"--bytes {text!r}: must be a number of bytes, such as 500000, 500kB or 5MB") from None
