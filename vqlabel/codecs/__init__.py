"""Codecs: labels <-> codes. A codec file is one safetensors file with the decoder and its resolved configuration.

Names are imported on first use (PEP 562), so that a configuration does not load torch, and a decoder does not load the
code of fits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqlabel.codecs.registry import CODECS, check_kind, codec_config

if TYPE_CHECKING:
    from vqlabel.codecs.base import LabelCodec
    from vqlabel.codecs.file import build_codec, load_codec, save_codec
    from vqlabel.codecs.fit import fit_codec
    from vqlabel.codecs.sample import FitHooks, LabelSample

_MODULES = {
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
    if name not in _MODULES:
        raise AttributeError(f"module 'vqlabel.codecs' has no attribute {name!r}")
    value = getattr(import_module(f"vqlabel.codecs.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
