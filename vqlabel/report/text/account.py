"""A `.vql` of documents -> where its bytes go, and bits per label at other numbers of labels. No torch."""

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from vqlabel.container.layout import CHUNKS, SEAL
from vqlabel.vql.file import CODEC
from vqlabel.vql.text.file import SUMS, TextVqlFile
from vqlabel.vql.text.table import TABLE

EXTRAPOLATED = (10**7, 10**9)  # labels
PARTS = {".prior.": "prior", ".codebook": "codebooks", ".out": "output map", ".bias": "output bias", ".projection": "projection",
         ".neighbours": "neighbour lists"}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRow:
    """A part of the file. `grows` is "per label" or "per document", or "fixed"."""

    part: str
    bytes: int
    grows: str


def account(path: str | PathLike[str]) -> dict[str, Any]:
    """Account for all bytes of a `.vql` of documents, as a JSON object.

    Returns:
        `rows`, parts whose bytes sum to the file; `bits_per_label`: `codes`, the streams of codes, counts and ids;
        `labels`, with the table of documents and chunk tables; `all_in`, the whole file; and `all_in_at` for other
        numbers of labels, with as many labels per document.
    """
    file = TextVqlFile(path)
    rows = _rows(file)
    labels = max(1, file.rows)
    by = {grows: sum(row.bytes for row in rows if row.grows == grows) for grows in ("per label", "per document", "fixed")}
    growing = by["per label"] + by["per document"]
    codes = sum(file.container.stored(stream.name) for stream in file.config.streams)
    return {
        "path": str(path),
        "labels": file.rows,
        "documents": len(file.documents),
        "vocabulary": file.classes,
        "codec": file.codec["kind"],
        "bytes": file.container.size,
        "rows": [asdict(row) for row in rows],
        "bits_per_label": {"codes": 8 * codes / labels, "labels": 8 * growing / labels, "all_in": 8 * file.container.size / labels},
        "all_in_at": {str(count): 8 * (growing / labels + by["fixed"] / count) for count in EXTRAPOLATED},
        "ratio_to_fp16": 16 * file.classes * labels / (8 * file.container.size),
    }


def _rows(file: TextVqlFile) -> list[TextRow]:
    container, streams = file.container, [*(stream.name for stream in file.config.streams), TABLE]
    sizes = {name: section.stop - section.start for name, section in container.sections.items()}
    rows = [
        TextRow(part=name, bytes=container.stored(name), grows="per document" if name == TABLE else "per label") for name in streams
    ]
    tables = sum(sizes[name + CHUNKS] for name in streams) + sizes.get(SUMS, 0)
    padding = sum(sizes[name] - container.stored(name) for name in streams)
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        if name.startswith(CODEC):
            part = next((title for text, title in PARTS.items() if text in name), "codec, other")
            parts[part] = parts.get(part, 0) + size
    known = {*streams, *(name + CHUNKS for name in streams), SUMS, SEAL}
    others = sum(size for name, size in sizes.items() if name not in known and not name.startswith(CODEC))
    rows += [TextRow(part="chunk tables", bytes=tables, grows="per label")]
    rows += [TextRow(part="padding", bytes=padding, grows="fixed")]
    rows += [TextRow(part=part, bytes=size, grows="fixed") for part, size in sorted(parts.items())]
    return [*rows, TextRow(part="header and seal", bytes=container.header_area + sizes[SEAL] + others, grows="fixed")]
