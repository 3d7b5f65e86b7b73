"""What the registry knows of a layout of text dumps, and the options of its reader."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vqlabel.labels.text.source import TextSource


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """How a dump is read, see `open_text_labels`; None: the user did not say."""

    layer: int | None = None
    vocab: int | None = None
    array: str | None = None
    k: int | None = None
    rest: str | None = None
    compression: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLayout:
    """A layout of text dumps. Each layout's module has one as LAYOUT.

    Attributes:
        source: opens a dump.
        detect: whether a file or folder is of this layout, by names alone.
        options: names of the options that apply to it, besides vocab.
    """

    source: Callable[[Path, TextOptions], TextSource]
    detect: Callable[[Path], bool]
    options: frozenset[str] = field(default_factory=frozenset)
