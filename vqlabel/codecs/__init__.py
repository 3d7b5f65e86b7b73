"""The codecs, by kind, and the codec file: one safetensors file with decoder and resolved configuration."""

from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.calibration import Calibration
from vqlabel.codecs.distortion import Distortion
from vqlabel.codecs.file import build_codec, cut, load_codec, save_codec
from vqlabel.codecs.registry import CODECS

__all__ = [
    "CODECS",
    "Calibration",
    "Distortion",
    "FitHooks",
    "LabelCodec",
    "LabelSample",
    "build_codec",
    "cut",
    "load_codec",
    "save_codec",
]
