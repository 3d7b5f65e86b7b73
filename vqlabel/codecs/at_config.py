"""A fitted codec at the rate that a user names."""

import dataclasses

from vqlabel.codecs.base import LabelCodec
from vqlabel.config import FitConfig
from vqlabel.errors import require

HEEDED = ("bits", "slots", "codec", "seed", "device")  # fields that a fitted codec can follow


def at_config(codec: LabelCodec, config: FitConfig) -> LabelCodec:
    """A fitted codec at the rate that `config` names in bits or slots; where it names none, the codec itself.

    Raises:
        UsageError: the codec has no such rate; `config` names what only a fit can follow.
    """
    defaults = FitConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        follows = field.name in HEEDED or value == getattr(defaults, field.name)
        require(follows, field.name, value, "is for a fit, and this codec is fitted; leave it out, or name no codec file")
    if config.bits is None and config.slots is None:
        return codec
    return codec.at_rate(bits=config.bits, slots=config.slots)
