"""The fingerprint of a dump: sha256 of the bytes of all labels in order.

Source: docs/format.md, `labels_sha256` of `vql.source`.
"""

import hashlib

from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.source import LabelSource
from vqlabel.labels.sparse import hash_labels


class LabelsHash:
    """The fingerprint of a dump whose batches come in any order.

    Batches that come in order are hashed as they come. A hash cannot skip bytes, so `hexdigest` reads the others again.
    """

    def __init__(self) -> None:
        self._hash, self._next = hashlib.sha256(), 0

    def add(self, index: int, batch: LabelBatch) -> None:
        """Add batch `index` of the dump."""
        if index == self._next:
            hash_labels(self._hash, batch.labels)
            self._next += 1

    def hexdigest(self, source: LabelSource) -> str:
        """The fingerprint of `source`, as 64 hexadecimal digits."""
        for index in range(self._next, len(source)):
            self.add(index, source.read(index))
        return self._hash.hexdigest()
