"""Codecs: labels <-> codes. The codec file is one safetensors file with the decoder and its resolved configuration.

Names are resolved when they are first used (PEP 562): a configuration loads no torch, and a decoder loads no code of a fit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqlabel.codecs.registry import CODECS, check_kind, codec_config

if TYPE_CHECKING:
    from vqlabel.codecs.base import LabelCodec
    from vqlabel.codecs.file import build_codec, load_codec, save_codec
    from vqlabel.codecs.fit import fit_codec
    from vqlabel.codecs.sample import FitHooks, LabelSample

_HOME = {
    "FitHooks": "sample",
    "LabelCodec": "base",
    "LabelSample": "sample",
    "build_codec": "file",
    "fit_codec": "fit",
    "load_codec": "file",
    "save_codec": "file",
}

__all__ = [
    "CODECS",
    "FitHooks",
    "LabelCodec",
    "LabelSample",
    "build_codec",
    "check_kind",
    "codec_config",
    "fit_codec",
    "load_codec",
    "save_codec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqlabel.codecs' has no attribute {name!r}")
    value = getattr(import_module(f"vqlabel.codecs.{_HOME[name]}"), name)
    globals()[name] = value
    return value
