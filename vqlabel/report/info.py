"""A `.vql`, a codec file or a dump -> what it holds, as JSON. No label of a `.vql` is decoded."""

from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.container import is_codec_file
from vqlabel.container.recognize import foreign_type
from vqlabel.labels import open_labels
from vqlabel.labels.schema import MIX_COLUMNS, OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.labels.text.open import is_text_dump, open_text_labels
from vqlabel.report.account import bytes_by_group
from vqlabel.report.text.account import account
from vqlabel.storage.filetypes import HEAD_BYTES
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.describe import file_info, text_info
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile, is_text

GAIN = "codec.decoder.contrast"  # the tensor with the gain of decoded labels
COUNTED = ("codes", "codec", "container")  # groups of bytes in the ratio to fp16; augmentation and order are not


@check_argument_types
def info(path: str | PathLike[str]) -> dict[str, Any]:
    """What a file or dump holds, as a JSON object; its key "what" is "images", "documents", "codec" or "dump".

    Of a `.vql` the header, the bytes of each group and the ratio to fp16 labels; of a codec file the report of its fit;
    of a dump, the first and the last batch are read.

    Raises:
        NoSuchFile: there is no such file; it is also a FileNotFoundError.
        BadInput: it is damaged, or neither of these.
    """
    path = Path(path).expanduser()
    if is_codec_file(path):
        return _codec(path)
    if _may_be_dump(path):
        return _dump(path)
    return _documents(TextVqlFile(path)) if is_text(path) else _images(VqlFile(path))


def _may_be_dump(path: Path) -> bool:
    """Whether a path is a folder, or a file of another type than a `.vql`."""
    if path.is_dir() or not path.exists():
        return path.is_dir()
    if path.suffix == ".vql" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    return foreign_type(start) is not None


def _images(file: VqlFile) -> dict[str, Any]:
    groups = bytes_by_group(file)
    counted = sum(groups[group] for group in COUNTED)
    return {
        "what": "images",
        **file_info(file),
        "images": None if file.images is None else file.images.count,
        "temperature": file.about.temperature,
        "gain": _gain(file),
        "pruned": file.pruned,
        "bytes_by_group": groups,
        "ratio_to_fp16": 2 * file.classes * file.records / counted if file.records else None,
    }


def _gain(file: VqlFile) -> float | None:
    """The gain of decoded labels; None: the codec has none."""
    if file.codec["kind"] != "vqae":
        return None
    section = file.container.sections.get(GAIN)  # a gain for each number of codes; absent if labels are calibrated
    return 1.0 if section is None or 0 in section.shape else float(file.container.tensor(GAIN).reshape(-1)[-1])


def _documents(file: TextVqlFile) -> dict[str, Any]:
    accounted = account(file.container.path)
    groups: dict[str, int] = {}
    for row in accounted["rows"]:
        groups[row["part"]] = groups.get(row["part"], 0) + row["bytes"]
    return {"what": "documents", **text_info(file), "bytes_by_group": groups, "ratio_to_fp16": accounted["ratio_to_fp16"]}


def _codec(path: Path) -> dict[str, Any]:
    from vqlabel.codecs import load_codec
    from vqlabel.workflows.quality import with_current_names

    codec, report = load_codec(path)
    return {
        "path": str(path),
        "what": "codec",
        "bytes": path.stat().st_size,
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "code_bits": sum(codec.code_bits),
        "report": with_current_names(report),
    }


def _dump(path: Path) -> dict[str, Any]:
    """A dump, of which the first and the last batch are read."""
    if is_text_dump(path):
        documents = open_text_labels(path)
        about = documents.about
        return {
            "path": str(path), "what": "dump", "layout": about.layout, "documents": len(documents),
            "labels": int((documents.lengths - 1).clip(0).sum()), "domain": about.domain, "width": about.width, "dtype": about.dtype,
            "vocabulary": about.vocabulary, "notes": documents.notes,
        }  # fmt: skip

    source = open_labels(path)
    first, last = source.read(0), source.read(len(source) - 1)
    epochs = len({place.epoch for place in source.places})
    labels = len(first) * (len(source) - epochs) + len(last) * epochs
    columns = (*OWN_COLUMNS, *PARTNER_COLUMNS, *MIX_COLUMNS)
    return {
        "path": str(path),
        "what": "dump",
        "layout": source.layout,
        "labels": labels,
        "classes": source.classes,
        "domain": source.domain,
        "dtype": source.dtype,
        "epochs": epochs,
        "batches": len(source),
        "batch_size": len(first),
        "order": source.order,
        "columns": [name for name in columns if getattr(first, name, None) is not None],
        "temperature": source.about.temperature,
        "notes": source.notes,
    }
