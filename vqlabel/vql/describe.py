"""The header of a `.vql` as JSON, for `info`."""

from typing import Any

import numpy as np

from vqlabel.labels.schema import MIX_COLUMNS, OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile


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
        "epochs": file.epochs,
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
