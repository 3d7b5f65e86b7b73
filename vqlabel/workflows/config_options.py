"""Fields of FitConfig and TextFitConfig as keyword options of a call: `fit(dump, bits=64)`."""

import dataclasses
import difflib
from typing import Any, TypedDict, TypeVar

from vqlabel.config import FitConfig, TextFitConfig
from vqlabel.errors import WrongType

Config = TypeVar("Config", FitConfig, TextFitConfig)


class TuneOptions(TypedDict, total=False):
    """Fields of `FitConfig` that `tune` has no parameter for."""

    bytes: int | None
    ratio: float | None
    slots: int | None
    variable_rate: bool
    codebook_size: int | None
    code_width: int | None
    latent: int | None
    weight_bits: int | None
    prior: bool | None
    image_width: int | None
    hidden: int | None
    temperature: tuple[float, ...] | None
    exact_classes: int | None
    gain: float | None
    epochs: int | None
    seed: int
    device: str


class PackOptions(TuneOptions, total=False):
    """Fields of `FitConfig` that `pack` has no parameter for."""

    bits: int | None


class FitOptions(PackOptions, total=False):
    """Fields of `FitConfig`."""

    codec: str | None


class TextFitOptions(TypedDict, total=False):
    """Fields of `TextFitConfig`."""

    bits: float | None
    bytes: int | None
    ratio: float | None
    slots: int
    codebook_size: int
    ids: int
    latent: int | None
    weight_bits: int
    prior: bool
    width: int
    layers: int
    window: int
    future: bool
    embed_head: bool
    labels: int
    epochs: int | None
    seed: int
    device: str


def config_of(kind: type[Config], config: Config | None, options: Any) -> Config:
    """The configuration that a call passes: as `config`, as keyword options, or neither (the defaults).

    Raises:
        WrongType: both are passed, or an option is unknown or of another type.
        UsageError: an option is out of its range.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise WrongType(
                f"unknown argument {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"options are {', '.join(names)}")
            )
    if config is not None and options:
        raise WrongType(f"config and {next(iter(options))} are both given; pass either a {kind.__name__}, or its fields as options")
    return kind(**options) if config is None else config
