"""The documents and labels of a fit."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.labels.text.documents import Documents


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSplit:
    """Some documents with their labels.

    Attributes:
        labels: one for each row of the documents.
    """

    documents: Documents
    labels: HiddenLabels

    def take(self, index: NDArray[np.int64]) -> "tuple[TextSplit, Tensor]":
        """The documents at `index` with their labels, and the indices of these among all labels."""
        documents, rows = self.documents.take(index)
        labels = torch.from_numpy(rows).to(self.labels.hidden.device)
        return TextSplit(documents=documents, labels=self.labels[labels]), labels

    def to(self, device: str | torch.device) -> "TextSplit":
        """With its labels on a device."""
        return TextSplit(documents=self.documents, labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSample:
    """Documents to fit a codec to, and held-out ones."""

    train: TextSplit
    held_out: TextSplit

    def to(self, device: str | torch.device) -> "TextSample":
        """With its labels on a device."""
        return TextSample(train=self.train.to(device), held_out=self.held_out.to(device))
