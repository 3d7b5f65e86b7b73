"""A fitted codec and a fit's configuration -> the codec at the configuration's rate."""

import dataclasses

from vqlabel.codecs.base import LabelCodec
from vqlabel.config import FitConfig
from vqlabel.errors import require

APPLICABLE = ("bits", "slots", "codec", "seed", "device")  # fields that may be set for a codec that is already fitted


def at_config(codec: LabelCodec, config: FitConfig) -> LabelCodec:
    """The codec at the rate of `config`, given in bits or slots; the codec itself if both are None.

    Raises:
        UsageError: the codec has no such rate; or `config` sets a field that only applies to a fit.
    """
    defaults = FitConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        applicable = field.name in APPLICABLE or value == getattr(defaults, field.name)
        require(
            applicable,
            field.name,
            value,
            "only applies when a codec is fitted, but a fitted one is given; remove this option, or --codec FILE to fit a new codec",
        )
    if config.bits is None and config.slots is None:
        return codec
    return codec.at_rate(bits=config.bits, slots=config.slots)
