"""A tokenizer -> what identifies it: its name, and the hash of its vocabulary."""

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.errors import BadInput, NoSuchFile, UsageError
from vqlabel.storage.filetypes import require_regular

FILE = "tokenizer.json"  # of Hugging Face tokenizers
MAX_BYTES = 1 << 28


def tokenizer_identity(tokenizer: str | PathLike[str] | Any) -> dict[str, str]:
    """The name of a tokenizer, and `sha256` of its tokens and their ids, sorted by id.

    Args:
        tokenizer: a tokenizer.json, a folder with one, or a tokenizer of transformers or tokenizers.

    Raises:
        NoSuchFile, BadInput: the file does not exist, or is not a tokenizer.json.
        UsageError: the object is no tokenizer.
    """
    if isinstance(tokenizer, str | PathLike):
        path = Path(tokenizer)
        file = path / FILE if path.is_dir() else path
        return {"name": path.resolve().parent.name if path.name == FILE else path.name, "sha256": _sha256(_vocabulary(file))}
    get = getattr(tokenizer, "get_vocab", None)
    if get is None:
        raise UsageError(
            f"tokenizer is a {type(tokenizer).__name__}; it must be a path or have get_vocab, as those of transformers"
        )
    return {"name": str(getattr(tokenizer, "name_or_path", "")), "sha256": _sha256(get())}


def _sha256(vocabulary: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for token, index in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index} {json.dumps(token)}\n".encode())
    return digest.hexdigest()


def _vocabulary(file: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json, added tokens included."""
    if not file.exists():
        raise NoSuchFile(f"{file}: no such file; pass a {FILE}, or a folder that contains one")
    require_regular(file)
    if file.stat().st_size > MAX_BYTES:
        raise BadInput(f"{file}: {file.stat().st_size:,} bytes; a {FILE} has at most {MAX_BYTES:,}")
    try:
        content = json.loads(file.read_bytes())
        model = content["model"]["vocab"]
        vocabulary = {str(entry[0]): index for index, entry in enumerate(model)} if isinstance(model, list) else dict(model)
        vocabulary |= {str(token["content"]): token["id"] for token in content.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file}: is not a {FILE} with a vocabulary ({error!r}); pass that of the teacher") from None
    if not all(isinstance(token, str) and type(index) is int for token, index in vocabulary.items()):
        raise BadInput(f"{file}: its vocabulary does not map tokens to ids; pass the {FILE} of the teacher")
    return vocabulary
