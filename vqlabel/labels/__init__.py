"""Dumps of teacher labels -> checked batches of records. Numpy; torch only inside the function that unpickles safely."""

from vqlabel.labels.detect import LAYOUTS, open_labels
from vqlabel.labels.source import Context, LabelBatch, LabelSource, Place

__all__ = ["LAYOUTS", "Context", "LabelBatch", "LabelSource", "Place", "open_labels"]
