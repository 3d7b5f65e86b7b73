"""Dumps of teacher labels -> checked batches of records. Numpy; torch only inside the function that unpickles."""

from vqlabel.labels.batch import Context, LabelBatch, Place, Support
from vqlabel.labels.layouts.registry import LAYOUTS
from vqlabel.labels.open import open_labels, writing
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.writer import LabelWriter

__all__ = [
    "LAYOUTS",
    "About",
    "Context",
    "LabelBatch",
    "LabelSource",
    "LabelWriter",
    "Place",
    "SparseLabels",
    "Support",
    "open_labels",
    "writing",
]
