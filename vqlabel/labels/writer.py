"""The contract of dump writers: batches in order -> files of one layout."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.source import About


class LabelWriter(ABC):
    """Writes a dump: `add` each batch in order, then `finish`. A writer refuses what its layout cannot represent.

    Args:
        out: the file or folder to write; it does not exist yet.
        about: of the dump that is written.
        form: the part of a layout's name after the colon, such as "10" in "lpqld:10".

    Attributes:
        files: files written so far, if `out` is a folder.

    Raises:
        UsageError: the layout cannot represent such a dump (in the constructor) or such a batch (in `add`); the message
            has the reason.
    """

    files = 0

    @abstractmethod
    def __init__(self, out: Path, about: About, form: str | None = None) -> None: ...

    @cached_property
    def notes(self) -> list[str]:
        """What users of the layout's script must know about the files: sentences that begin with its name."""
        return []

    @abstractmethod
    def add(self, batch: LabelBatch) -> None:
        """Write one batch; its labels are float16, or float32 if `about.dtype` is BF16 or F32."""

    def counted(self, file: Path) -> Path:
        """Count `file`, which is about to be written, and return it."""
        self.files += 1
        return file

    def finish(self) -> None:
        """Write what is known only after the last batch."""
        return None

    def close(self) -> None:
        """Close open files, after `finish` or instead of it."""
        return None
