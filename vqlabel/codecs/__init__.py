"""The codecs, by kind, and the codec file: one safetensors file with decoder and resolved configuration."""

from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.file import build_codec, cut, load_codec, save_codec
from vqlabel.codecs.registry import CODECS
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.distortion import Distortion

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
