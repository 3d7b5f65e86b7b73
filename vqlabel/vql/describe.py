"""A `.vql` in one line, for `repr`, and its header as JSON, for `info`."""

from typing import Any

import numpy as np

from vqlabel.labels.schema import MIX_COLUMNS, OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile


def in_one_line(file: VqlFile) -> str:
    """ "'labels.vql': 32,000 labels x 1,000 classes, 32 epochs, logits, vqae 36 bits, 536 kB"."""
    return (
        f"{str(file.container.path)!r}: {file.records:,} labels x {file.classes:,} classes, {epochs_of(file):,} epochs, "
        f"{file.label['domain']}, {file.codec['kind']} {file.label_bits:.4g} bits, {in_bytes(file.container.size)}"
    )


def text_in_one_line(file: TextVqlFile) -> str:
    """The same for labels of documents."""
    return (
        f"{str(file.container.path)!r}: {file.rows:,} labels of {len(file.documents):,} documents, "
        f"{file.classes:,} tokens in the vocabulary, {file.label_bits:.1f} bits per label, {in_bytes(file.container.size)}"
    )


def in_bytes(size: int) -> str:
    """536 kB, 5.4 MB: three digits and a decimal unit."""
    units = ("B", "kB", "MB", "GB", "TB")
    step = next((step for step in range(len(units)) if size < 999.5 * 1000**step), len(units) - 1)
    return f"{size / 1000**step:.3g} {units[step]}"


def epochs_of(file: VqlFile) -> int:
    """Number of stored epochs."""
    return len(np.unique(file.columns.places.epoch)) if len(file.columns.places) else 0


def file_info(file: VqlFile) -> dict[str, Any]:
    """The header of a file of images' labels."""
    names = (*OWN_COLUMNS, *PARTNER_COLUMNS, *MIX_COLUMNS, "image_size", "drawn", "names")
    stored = file.container.json_object("vql.columns")
    is_seeded = stored.get("order") == "seeded"
    return {
        "path": str(file.container.path),
        "bytes": file.container.size,
        "version": file.container.metadata["vql.version"],
        "records": file.records,
        "label": file.label,
        "codec": file.codec,
        "code_bits": file.label_bits,
        "epochs": epochs_of(file),
        "batches": len(file.columns.places),
        "batch_size": int(np.diff(file.columns.starts).max(initial=0)),
        "order": "seeded" if is_seeded else file.columns.order,
        "columns": [name for name in names if PREFIX + name in file.container.streams],
        "drawn": [name for name in names if file.columns.has(name)] if is_seeded else [],
        "recipe": stored.get("recipe"),
        "source": file.source,
        "writer": file.container.metadata.get("vql.writer"),
    }


def text_info(file: TextVqlFile) -> dict[str, Any]:
    """The header of a file of documents' labels."""
    return {
        "path": str(file.container.path),
        "bytes": file.container.size,
        "version": file.container.metadata["vql.version"],
        "labels": file.rows,
        "documents": len(file.documents),
        "bits_per_label": file.label_bits,
        "label": file.label,
        "codec": file.codec,
        "text": file.text,
        "writer": file.container.metadata.get("vql.writer"),
    }
