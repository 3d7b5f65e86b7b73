"""A path -> the corpus that is there."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from vqlabel.errors import BadInput, NoSuchFile, require
from vqlabel.labels.layouts.shards import in_numeric_order
from vqlabel.labels.text.corpus import jsonl, npy, tables
from vqlabel.labels.text.corpus.corpus import Corpus, CorpusFile
from vqlabel.labels.text.corpus.tokenizer import TextTokenizer
from vqlabel.storage.filetypes import foreign_file_message, require_regular
from vqlabel.type_checks import check_argument_types

SUFFIXES = (npy.SUFFIX, jsonl.SUFFIX, *tables.SUFFIXES)
_FORMS = f"a {', '.join(SUFFIXES[:3])} or .arrow file, or a folder of such files"


@check_argument_types
def open_corpus(
    path: str | PathLike[str], *, document_length: int | None = None, tokenizer: str | PathLike[str] | None = None
) -> Corpus:
    """Open the documents that a teacher is to label. All are read once.

    Args:
        path: a .npy of token ids [n, L] or [T]; a .jsonl, Parquet or Arrow file with input_ids, token_ids, tokens or
            text in each row; or a folder of such files of one kind, in numeric order.
        document_length: tokens of each document of flat arrays [T] that have no offsets beside them.
        tokenizer: the teacher's: a tokenizer.json, or a folder that transformers reads. Texts need it; of token ids, it
            is the one that the corpus is known to be tokenized with.

    Raises:
        UsageError: there is no such path, or an option is missing or does not apply.
        BadInput: a document is empty or broken; the message names its place.
        MissingExtra: the reader of such files, or of the tokenizer, is not installed.
    """
    path, reader = Path(path), None if tokenizer is None else TextTokenizer(Path(tokenizer))
    files = _files(path)
    suffix = files[0].suffix
    require(document_length is None or suffix == npy.SUFFIX, "document_length", document_length, f"must be left out for {suffix} files, whose rows are documents")  # fmt: skip
    open_file: Callable[[Path], CorpusFile]
    if suffix == npy.SUFFIX:
        open_file = lambda file: npy.NpyFile(file, document_length)
    elif suffix == jsonl.SUFFIX:
        open_file = lambda file: jsonl.JsonlFile(file, reader)
    else:
        open_file = lambda file: tables.TableFile(file, reader)
    return Corpus(path, [open_file(file) for file in files], {} if reader is None else reader.identity)


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder in numeric order, all of one suffix."""
    if not path.exists():
        raise NoSuchFile(f"{path}: no such file or directory; a corpus is {_FORMS}")
    if not path.is_dir():
        require_regular(path, BadInput)
        if path.suffix not in SUFFIXES:
            raise BadInput(foreign_file_message(path, "a corpus") or f"{path}: is no corpus; it must be {_FORMS}")
        return [path]
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    files = sorted((file for file in files if not file.name.endswith(npy.OFFSETS)), key=in_numeric_order)
    kinds = sorted({file.suffix for file in files})
    if len(kinds) != 1:
        found = f"has {' and '.join(kinds)} files; keep those of one kind" if kinds else "has no such file"
        raise BadInput(f"{path}: {found}; a corpus is {_FORMS}")
    return files
