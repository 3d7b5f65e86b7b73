"""The contract of dump readers: places in order, and a checked batch at each."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.batch import LabelBatch, Place, Support
from vqlabel.labels.checks import check_domain, check_finite
from vqlabel.labels.image_set import ImageSet


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """Properties of a dump as a whole.

    Attributes:
        layout: name of the dump's layout.
        classes: C.
        domain: "logits", "probs" or "sigmoid", see `config.DOMAINS`.
        dtype: type of the stored labels: "F16", "BF16" or "F32".
        order: "explicit" (batches carry image indices), "rows" (record i of an epoch is image i) or "none".
        temperature: of the students that this layout's scripts train; None if the scripts leave it open.
        support: which numbers of a label are known; None: all.
        names: of the images, by index, if the dump identifies images by name.
        images: which images the labels are of; None if unknown.
        view: pixels along a side of a view; None if unknown.
        details: JSON that only a writer of the same layout needs, to reproduce the stored items exactly.
    """

    layout: str
    classes: int
    domain: str
    dtype: str
    order: str
    temperature: float | None = None
    support: Support | None = None
    names: Sequence[str] | None = None
    images: ImageSet | None = None
    view: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class LabelSource(ABC):
    """A dump: its places in order, and a batch at each. Memory holds one batch at a time.

    Attributes:
        path: of the dump, for messages.
        places: (epoch, batch) of every batch, in order.
        about: the properties of the dump as a whole.
        evidence: one sentence on how well labels agree with the classes of their images; None if that was not examined.
    """

    path: Path
    places: Sequence[Place]
    about: About
    evidence: str | None = None

    @property
    def layout(self) -> str:
        """See `About`."""
        return self.about.layout

    @property
    def classes(self) -> int:
        """C."""
        return self.about.classes

    @property
    def domain(self) -> str:
        """See `About`."""
        return self.about.domain

    @property
    def dtype(self) -> str:
        """See `About`."""
        return self.about.dtype

    @property
    def order(self) -> str:
        """See `About`."""
        return self.about.order

    @property
    def support(self) -> Support | None:
        """See `About`."""
        return self.about.support

    @cached_property
    def notes(self) -> list[str]:
        """How the dump is read if that may surprise a user, such as a narrowed dtype: sentences that begin with a path.

        A source appends to it when it is opened; the command line prints it to stderr.
        """
        return []

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.places)

    def __iter__(self) -> Iterator[LabelBatch]:
        for index in range(len(self)):
            yield self.read(index)

    def spans(self, records: int) -> list[range]:
        """Cut the dump into spans of consecutive batches, which can be read and encoded in any order.

        Spans have about `records` records, as the first batch tells; they depend on the dump alone, never on the number
        of workers.
        """
        step = max(1, -(-records // max(1, len(self.read(0))))) if len(self) else 1
        return [range(start, min(start + step, len(self))) for start in range(0, len(self), step)]

    def read(self, index: int) -> LabelBatch:
        """The batch at `places[index]`, checked.

        Raises:
            BadLabels: the batch is malformed, has another number of classes, contains NaN or Inf, or is of another
                domain; or its file changed since its first read.
        """
        self._check_files(index)
        batch, name = self._load(index)
        if batch.labels.shape[1] != self.classes:
            raise BadLabels(
                f"{name}: {batch.labels.shape[1]} classes; the first batch has {self.classes}: all labels of a dump have one teacher"
            )
        check_finite(batch.labels, name)
        check_domain(batch.labels, self.domain, name, self.support)
        return batch

    def load(self, index: int) -> tuple[LabelBatch, str]:
        """The batch at `places[index]`, unchecked, and its name for messages."""
        return self._load(index)

    def files_of(self, index: int) -> tuple[Path, ...]:
        """The files that hold the batch at `places[index]`; empty if it is computed on demand."""
        return (self.path,) if self.path.is_file() else ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Paths that no target may replace: `path`, if batches are read from files in it."""
        return (self.path,) if len(self) and self.files_of(0) else ()

    def check_unchanged(self) -> None:
        """Raises BadLabels if a file changed since a batch was first read from it."""
        for index in np.flatnonzero(self._stamps):
            self._check_files(int(index))

    @cached_property
    def _stamps(self) -> NDArray[np.int64]:
        """[batches] hash of the size and time of each batch's files at its first read; 0 before that."""
        return np.zeros(len(self), np.int64)

    def _check_files(self, index: int) -> None:
        """Raises BadLabels if the files of a batch changed since its first read; the first call records their stamp."""
        files = self.files_of(index)
        try:
            stamp = hash(tuple((stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)))
        except OSError as error:
            raise BadLabels(f"{error.filename}: {error.strerror}; it existed when the dump was opened") from None
        if self._stamps[index] not in (0, stamp):
            raise BadLabels(
                f"{' or '.join(map(str, files or (self.path,)))}: changed while it was read: nothing was written. Run again when the dump is "
                "complete"
            )
        self._stamps[index] = stamp

    @abstractmethod
    def _load(self, index: int) -> tuple[LabelBatch, str]:
        """The batch, and its name for messages: its file, and its first row if the file has several batches."""
