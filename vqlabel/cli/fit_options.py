"""The options of a fit, shared by fit, pack and tune: declared once and passed to the command as one `FitConfig`."""

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
        help="temperatures of the student's loss, such as 1,4,20; a schedule, such as 20:2; or mse for squared error of logits (default: "
        "the temperature of the layout's recipe, such as 20 for sre2l, otherwise 1,4,20)"
    ),
]
USED_OPTIONS = {"raw": (), "topk": ("slots", "bits"), "sparse": ("slots", "bits")}  # codec -> options that change it
NEVER_REPORTED = ("codec", "temperature", "seed", "device", "bytes", "ratio")  # every codec uses or refuses these
SEED_HELP = "random seed; results are reproducible on the same machine with the same number of threads"
OPTIONS: dict[str, Any] = {
    "ratio": Annotated[
        float | None,
        typer.Option(help="target compression ratio against fp16 logits; augmentation and image order are not counted"),
    ],
    "bytes": Annotated[
        str | None, typer.Option(help="target file size, such as 500kB or 5MB; augmentation and image order are not counted")
    ],
    "bits": Annotated[
        int | None,
        typer.Option(
            help="code bits per label; codec and header are extra (default: 128, or determined by --ratio, --bytes or --kl)"
        ),
    ],
    "temperature": Temperature,
    "prior": Annotated[
        bool | None,
        typer.Option(
            "--prior/--no-prior",
            help="predict labels from side information: image, partner, lambda, crop (default: only if that lowers the KL)",
        ),
    ],
    "slots": Annotated[int | None, typer.Option(help="m, codes per label; topk and sparse: classes kept")],
    "variable_rate": Annotated[
        bool,
        typer.Option(
            "--variable-rate",
            help="variable rate: --bits is the average per label, --slots the maximum; each label also stores its code count",
        ),
    ],
    "codebook_size": Annotated[int | None, typer.Option(help="k, code vectors per codebook")],
    "code_width": Annotated[
        int | None,
        typer.Option(help="d_c, width of a code vector: splits the latent into latent / d_c groups (default: residual slots)"),
    ],
    "latent": Annotated[int | None, typer.Option(help="d_h, width of the latent")],
    "weight_bits": Annotated[int | None, typer.Option(help="bits per stored weight of codebooks, decoder and prior, 2..8")],
    "image_width": Annotated[int | None, typer.Option(help="width of the prior's vector per image")],
    "hidden": Annotated[int | None, typer.Option(help="units in the prior's hidden layer")],
    "exact_classes": Annotated[
        str,
        typer.Option(
            help="number of largest classes stored exactly: exact top-1 and the lowest KL at T = 1; auto: the number that minimizes the KL"
        ),
    ],
    "gain": Annotated[
        float | None,
        typer.Option(
            help="factor that rescales decoded labels about their mean; 1 gives the lowest KL (default: the gain that makes labels "
            "unbiased: better for students, higher KL)"
        ),
    ],
    "epochs": Annotated[int | None, typer.Option(help="training passes over the labels in each stage of a fit")],
    "seed": Annotated[int, typer.Option(help=SEED_HELP)],
    "device": Annotated[str, typer.Option(help="PyTorch device: cpu, cuda, cuda:1, mps")],
}
LAYOUTS = "arrays, sre2l, lpld, lpqld, gvbsm, edc, hald, fkd, tinyvit or tensor"  # a copy of labels.LAYOUTS: --help loads no NumPy
SCHEDULE_STEPS = 4  # temperatures that approximate a schedule; each adds a KL to the training loss
MSE_TEMPERATURE = 100.0  # T^2 * KL approaches squared error of logits as T grows; above this, float32 loses the differences
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `config`, a `FitConfig`, of a command by the options of OPTIONS."""
    defaults = {field.name: field.default for field in dataclasses.fields(FitConfig)} | {"bits": None, "exact_classes": "0"}
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "config"]
    of_fit = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
        for name, annotation in OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in OPTIONS}
        for sentence in unused_options(arguments.get("codec"), values, defaults):
            note(sentence)
        command(**arguments, config=_config(values))

    del run.__wrapped__  # typer would read the signature and type hints of the wrapped function
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    optional = [p for p in parameters if p.default is not inspect.Parameter.empty]
    run.__signature__ = inspect.Signature([*required, *of_fit, *optional])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*required, *of_fit, *optional]}
    return run


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


def unused_options(codec: object, values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """One sentence for each option of a fit that was set and does not change this codec."""
    if codec not in USED_OPTIONS:
        return []
    used = USED_OPTIONS[str(codec)]
    why = f"uses only {' and '.join('--' + name for name in used)}" if used else "stores labels unchanged"
    unused = [name for name, value in values.items() if name not in (*used, *NEVER_REPORTED) and value != defaults[name]]
    return [f"--{name.replace('_', '-')} {values[name]} has no effect: --codec {codec} {why}" for name in unused]


def _config(values: dict[str, Any]) -> FitConfig:
    values["exact_classes"] = read_exact_classes(values["exact_classes"])
    values["temperature"] = read_temperature(values["temperature"])
    values["bytes"] = None if values["bytes"] is None else read_size(values["bytes"])
    return FitConfig(**values)


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

    "1,4,20" -> these temperatures; "20:2", a schedule from 20 to 2 -> SCHEDULE_STEPS temperatures in geometric
    progression; "mse" -> MSE_TEMPERATURE.

    Raises:
        UsageError: `text` has another form.
    """
    if text is None:
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
            f"--temperature {text!r}: must be comma-separated numbers such as 1,4,20, a schedule such as 20:2, or mse"
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
