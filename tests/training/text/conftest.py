"""A small `.vql` of documents, with a codec that reads tokens or without a prior, and its corpus."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.text_corpus import random_codec, small_split, write_text_file
from vqlabel.training.text.text_labels import TextLabels


class TextFile(NamedTuple):
    """A `.vql`, all documents that it was made of, some of one token, and the labels of each, decoded whole and alone.

    logits: [L - 1, V] of every document.
    """

    path: Path
    documents: list[NDArray[np.int64]]
    logits: list[Tensor]

    def open(self) -> TextLabels:
        """With a corpus in another order."""
        return TextLabels(self.path, corpus=self.documents[::-1])


def write(folder: Path, **changes: object) -> TextFile:
    path = folder / "labels.vql"
    documents = write_text_file(path, random_codec(price=0.01, **changes), small_split(30))
    labels = TextLabels(path)
    return TextFile(path, documents, [labels.of(torch.from_numpy(tokens)[None]).logits(slice(None)) for tokens in documents])


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> TextFile:
    """With a prior that reads 4 tokens on each side."""
    return write(tmp_path_factory.mktemp("with_prior"))


@pytest.fixture(scope="session")
def priorless(tmp_path_factory: pytest.TempPathFactory) -> TextFile:
    return write(tmp_path_factory.mktemp("without_prior"), prior=None)
