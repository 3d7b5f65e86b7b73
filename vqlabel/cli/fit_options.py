"""The options of a fit, shared by fit, pack and tune: declared once and passed to the command as one `FitConfig`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vqlabel.cli.help import CODEC, RATE, TRAINING
from vqlabel.cli.options import Device, Seed, Temperature
from vqlabel.cli.parse import read_exact_classes, read_size, read_temperature
from vqlabel.cli.terminal import note
from vqlabel.codecs.registry import config_class
from vqlabel.config import FitConfig

NEVER_REPORTED = ("codec", "temperature", "seed", "device", "bytes", "ratio")  # every codec uses or refuses these
OPTIONS: dict[str, Any] = {
    "ratio": Annotated[
        float | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RATE,
            help="target compression ratio against fp16 logits; augmentation and image order are not counted",
        ),
    ],
    "bytes": Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=RATE,
            help="target file size, such as 500kB, 5M or 5MiB; augmentation and image order are not counted",
        ),
    ],
    "bits": Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RATE,
            help="code bits per label; codec and header are extra (default: 128, or determined by --ratio, --bytes or --kl)",
        ),
    ],
    "temperature": Temperature,
    "prior": Annotated[
        bool | None,
        typer.Option(
            "--prior/--no-prior",
            rich_help_panel=CODEC,
            help="predict labels from side information: image, partner, lambda, crop (default: only if that lowers the KL)",
        ),
    ],
    "slots": Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=CODEC, help="m, codes per label; topk and sparse: classes kept")
    ],
    "variable_rate": Annotated[
        bool,
        typer.Option(
            "--variable-rate",
            rich_help_panel=RATE,
            help="variable rate: --bits is the average per label, --slots the maximum; each label also stores its code count",
        ),
    ],
    "codebook_size": Annotated[int | None, typer.Option(metavar="N", rich_help_panel=CODEC, help="k, code vectors per codebook")],
    "code_width": Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=CODEC,
            help="d_c, width of a code vector: splits the latent into latent / d_c groups (default: residual slots)",
        ),
    ],
    "latent": Annotated[int | None, typer.Option(metavar="N", rich_help_panel=CODEC, help="d_h, width of the latent")],
    "weight_bits": Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=CODEC, help="bits per stored weight of codebooks, decoder and prior, 2..8"),
    ],
    "image_width": Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=CODEC, help="width of the prior's vector per image")
    ],
    "hidden": Annotated[int | None, typer.Option(metavar="N", rich_help_panel=CODEC, help="units in the prior's hidden layer")],
    "exact_classes": Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            rich_help_panel=CODEC,
            help="number of largest classes stored exactly: exact top-1 and the lowest KL at T = 1; auto: the number that minimizes the KL",
        ),
    ],
    "gain": Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            rich_help_panel=CODEC,
            help="factor that rescales decoded labels about their mean; 1 gives the lowest KL (default: the gain that makes labels "
            "unbiased: better for students, higher KL)",
        ),
    ],
    "epochs": Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=TRAINING, help="training passes over the labels in each stage of a fit"),
    ],
    "seed": Seed,
    "device": Device,
}


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
    first = [p for p in parameters if p.name == "codec"]
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    optional = [p for p in parameters if p.default is not inspect.Parameter.empty and p not in first]
    run.__signature__ = inspect.Signature([*required, *first, *of_fit, *optional])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*required, *first, *of_fit, *optional]}
    return run


def unused_options(codec: object, values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """One sentence for each option of a fit that was set and does not change this codec."""
    used = config_class(codec).fit_options
    if used is None:
        return []
    why = f"uses only {' and '.join('--' + name for name in used)}" if used else "stores labels unchanged"
    unused = [name for name, value in values.items() if name not in (*used, *NEVER_REPORTED) and value != defaults[name]]
    return [f"--{name.replace('_', '-')} {values[name]} has no effect: --codec {codec} {why}" for name in unused]


def _config(values: dict[str, Any]) -> FitConfig:
    values["exact_classes"] = read_exact_classes(values["exact_classes"])
    values["temperature"] = read_temperature(values["temperature"])
    values["bytes"] = None if values["bytes"] is None else read_size(values["bytes"])
    return FitConfig(**values)
