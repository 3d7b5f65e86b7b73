"""vqlabel: teacher labels in a few bits each.

The public names are resolved when they are first used (PEP 562), so that importing the package, or asking the command line for
help, loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VqlabelError": "vqlabel.errors",
    "open_labels": "vqlabel.labels",
    "LabelBatch": "vqlabel.labels",
    "FitConfig": "vqlabel.config",
    "fit": "vqlabel.fitting",
    "load_codec": "vqlabel.codecs",
    "save_codec": "vqlabel.codecs",
    "pack": "vqlabel.packing",
    "unpack": "vqlabel.unpacking",
    "open": "vqlabel.dataset",
    "VqlDataset": "vqlabel.dataset",
    "VqlViews": "vqlabel.training",
    "StoredBatches": "vqlabel.training",
    "PooledBatches": "vqlabel.training",
    "convert": "vqlabel.converting",
    "relabel": "vqlabel.relabeling",
    "verify": "vqlabel.verifying",
    "stats": "vqlabel.report",
}

__all__ = [
    "FitConfig",
    "LabelBatch",
    "PooledBatches",
    "StoredBatches",
    "VqlDataset",
    "VqlViews",
    "VqlabelError",
    "convert",
    "fit",
    "load_codec",
    "open",
    "open_labels",
    "pack",
    "relabel",
    "save_codec",
    "stats",
    "unpack",
    "verify",
]

if TYPE_CHECKING:
    from vqlabel.codecs import load_codec, save_codec
    from vqlabel.config import FitConfig
    from vqlabel.converting import convert
    from vqlabel.dataset import VqlDataset, open
    from vqlabel.errors import VqlabelError
    from vqlabel.fitting import fit
    from vqlabel.labels import LabelBatch, open_labels
    from vqlabel.packing import pack
    from vqlabel.relabeling import relabel
    from vqlabel.report import stats
    from vqlabel.training import PooledBatches, StoredBatches, VqlViews
    from vqlabel.unpacking import unpack
    from vqlabel.verifying import verify


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqlabel' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
