"""What the registry knows of a layout: how its dumps are recognised, read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vqlabel.labels.source import LabelSource
from vqlabel.labels.writer import LabelWriter

# Order of detection: layouts with unmistakable file names are tried first, then those whose names also occur inside
# other dumps, then those that accept any tar.
OWN_NAMES, SHARED_NAMES, ANY_TAR = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout of dumps. Each layout's module has one as LAYOUT.

    Attributes:
        source: called with a path and a domain (None: as declared), and with what `options` lists.
        writer: its writer.
        detect: a folder -> the name of the layout, or None if it is of another; None: only other layouts detect it.
        step: OWN_NAMES; SHARED_NAMES if parts of other dumps have such names, too; ANY_TAR if any tar below is taken.
        entries: regular expression of the names at the top of a dump, by which a folder is known to hold nothing else.
        holds_only: a folder -> whether it holds nothing but such a dump, if names at the top do not tell; else None.
        options: "" (path and domain are all), "array" (a Selection: its files may hold several arrays), or "topk" (the
            number of classes, which dumps of the k largest values do not record).
    """

    source: Callable[..., LabelSource]
    writer: type[LabelWriter]
    detect: Callable[[Path], str | None] | None = None
    step: int = OWN_NAMES
    entries: str = ""
    holds_only: Callable[[Path], bool] | None = None
    options: str = ""
