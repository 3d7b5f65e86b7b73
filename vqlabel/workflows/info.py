"""A `.vql` or a codec file -> what it holds, as JSON; no label is decoded."""

from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.container import is_codec_file
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.describe import file_info, text_info
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile, is_text


@check_argument_types
def info(path: str | PathLike[str]) -> dict[str, Any]:
    """The header of a `.vql`, of images or of documents, or of a codec file with the report of its fit.

    Raises:
        NoSuchFile: the file does not exist; it is also a FileNotFoundError.
        BadContainer: the file is damaged, or another kind of file.
    """
    path = Path(path).expanduser()
    if is_codec_file(path):
        return _codec_info(path)
    return text_info(TextVqlFile(path)) if is_text(path) else file_info(VqlFile(path))


def _codec_info(path: Path) -> dict[str, Any]:
    from vqlabel.codecs import load_codec
    from vqlabel.workflows.quality import with_current_names

    codec, report = load_codec(path)
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "code_bits": sum(codec.code_bits),
        "report": with_current_names(report),
    }
