"""vqlabel: compress a teacher's soft labels to a few bits per label.

Public names are imported at first use (PEP 562), so that `import vqlabel` and `vqlabel --help` load neither torch nor
numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqlabel.version import __version__ as __version__

_MODULES = {  # public name -> module that defines it, and its name there after a colon if that differs
    "VqlabelError": "vqlabel.errors",
    "open_labels": "vqlabel.labels",
    "LabelBatch": "vqlabel.labels",
    "FitConfig": "vqlabel.config",
    "fit": "vqlabel.workflows.fit",
    "load_codec": "vqlabel.codecs",
    "save_codec": "vqlabel.codecs",
    "pack": "vqlabel.workflows.pack",
    "unpack": "vqlabel.workflows.unpack",
    "open": "vqlabel.training.dataset",
    "VqlDataset": "vqlabel.training.dataset",
    "VqlViews": "vqlabel.training.views",
    "StoredBatches": "vqlabel.training.samplers",
    "PooledBatches": "vqlabel.training.samplers",
    "tune": "vqlabel.workflows.tune",
    "info": "vqlabel.report.info",
    "compare": "vqlabel.report.rate_distortion:compare_methods",
    "CompareConfig": "vqlabel.report.rate_distortion",
    "convert": "vqlabel.workflows.convert",
    "relabel": "vqlabel.workflows.relabel",
    "verify": "vqlabel.workflows.verify",
    "stats": "vqlabel.report",
    "TextFitConfig": "vqlabel.config",
    "fit_text": "vqlabel.workflows.text.fit",
    "stats_text": "vqlabel.report.text.stats",
    "tune_text": "vqlabel.workflows.text.tune",
    "TextGoal": "vqlabel.workflows.text.tune",
    "compare_text": "vqlabel.report.text.compare",
    "TextCompareConfig": "vqlabel.report.text.compare",
    "pack_text": "vqlabel.workflows.text.pack",
    "relabel_text": "vqlabel.workflows.text.relabel",
    "open_text": "vqlabel.training.text.text_labels",
    "TextLabels": "vqlabel.training.text.text_labels",
    "kd_loss": "vqlabel.training.text.losses",
    "KdMixin": "vqlabel.training.text.trainer",
}

__all__ = [
    "CompareConfig",
    "FitConfig",
    "KdMixin",
    "LabelBatch",
    "PooledBatches",
    "StoredBatches",
    "TextCompareConfig",
    "TextFitConfig",
    "TextGoal",
    "TextLabels",
    "VqlDataset",
    "VqlViews",
    "VqlabelError",
    "compare",
    "compare_text",
    "convert",
    "fit",
    "fit_text",
    "info",
    "kd_loss",
    "load_codec",
    "open",
    "open_labels",
    "open_text",
    "pack",
    "pack_text",
    "relabel",
    "relabel_text",
    "save_codec",
    "stats",
    "stats_text",
    "tune",
    "tune_text",
    "unpack",
    "verify",
]

if TYPE_CHECKING:
    from vqlabel.codecs import load_codec, save_codec
    from vqlabel.config import FitConfig, TextFitConfig
    from vqlabel.errors import VqlabelError
    from vqlabel.labels import LabelBatch, open_labels
    from vqlabel.report import stats
    from vqlabel.report.info import info
    from vqlabel.report.rate_distortion import CompareConfig
    from vqlabel.report.rate_distortion import compare_methods as compare
    from vqlabel.report.text.compare import TextCompareConfig, compare_text
    from vqlabel.report.text.stats import stats_text
    from vqlabel.training.dataset import VqlDataset, open
    from vqlabel.training.samplers import PooledBatches, StoredBatches
    from vqlabel.training.text.losses import kd_loss
    from vqlabel.training.text.text_labels import TextLabels, open_text
    from vqlabel.training.text.trainer import KdMixin
    from vqlabel.training.views import VqlViews
    from vqlabel.workflows.convert import convert
    from vqlabel.workflows.fit import fit
    from vqlabel.workflows.pack import pack
    from vqlabel.workflows.relabel import relabel
    from vqlabel.workflows.text.fit import fit_text
    from vqlabel.workflows.text.pack import pack_text
    from vqlabel.workflows.text.relabel import relabel_text
    from vqlabel.workflows.text.tune import TextGoal, tune_text
    from vqlabel.workflows.tune import tune
    from vqlabel.workflows.unpack import unpack
    from vqlabel.workflows.verify import verify


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vqlabel' has no attribute {name!r}")
    module, _, own_name = _MODULES[name].partition(":")
    value = getattr(import_module(module), own_name or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
