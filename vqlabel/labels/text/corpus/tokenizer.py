"""The teacher's tokenizer: texts -> token ids, as its library does it by default, with its special tokens."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput, MissingExtra, NoSuchFile, UsageError
from vqlabel.labels.text.tokenizer import FILE, tokenizer_identity


class TextTokenizer:
    """A tokenizer, loaded when the first text is read.

    Args:
        path: a tokenizer.json, which the tokenizers library reads; or a folder, which transformers reads.

    Raises:
        NoSuchFile: there is no such path.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise NoSuchFile(f"{path}: no such file or directory; pass a {FILE}, or the folder of a tokenizer")
        self.path = path

    def __call__(self, text: str) -> NDArray[np.int64]:
        """The ids of a text.

        Raises:
            MissingExtra: the library is not installed.
            BadInput: the files are no tokenizer.
        """
        return np.array(self._encode(text), np.int64)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Name and sha256, see `tokenizer_identity`."""
        has_file = self.path.is_file() or (self.path / FILE).exists()
        return tokenizer_identity(self.path if has_file else self._folder)

    @cached_property
    def _encode(self) -> Callable[[str], Sequence[int]]:
        if self.path.is_dir():
            tokenizer = self._folder
            return lambda text: tokenizer(text)["input_ids"]
        try:
            from tokenizers import Tokenizer  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra("tokenizers", "text") from None
        try:
            file = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises plain exceptions
            raise BadInput(f"{self.path}: is not a {FILE} ({str(error)[:200]}); pass that of the teacher") from None
        file.no_truncation()
        file.no_padding()
        return lambda text: file.encode(text).ids

    @cached_property
    def _folder(self) -> Any:
        """The tokenizer of transformers."""
        try:
            from transformers import AutoTokenizer  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra("transformers", "teachers") from None
        try:
            return AutoTokenizer.from_pretrained(str(self.path), local_files_only=True)
        except Exception as error:  # the library raises nearly anything
            raise UsageError(
                f"{self.path}: transformers finds no tokenizer there ({str(error)[:200]}); pass the teacher's folder or its {FILE}"
            ) from None
