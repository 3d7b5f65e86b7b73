"""A `.vql` as a dump: labels decoded batch by batch, so that whatever reads dumps reads `.vql` files, too."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.dtypes import LABEL_TYPES, torch_type
from vqlabel.errors import require
from vqlabel.labels import LabelBatch, LabelSource, Place, SparseLabels
from vqlabel.labels.sparse import Labels, concatenate
from vqlabel.vql.decode import check_batch_memory, label_steps, narrow, read_codec
from vqlabel.vql.file import VqlFile


class VqlSource(LabelSource):
    """The labels of a `.vql` as a dump: its stored batches, decoded when they are read.

    Args:
        dtype: of the labels: "f16", "bf16" or "f32"; None: that of the dump.
        device: where labels are decoded.

    Raises:
        UsageError: the file does not exist, or the dtype is unknown.
        BadContainer: the `.vql` is damaged.
    """

    def __init__(self, path: str | PathLike[str], *, dtype: str | None = None, device: str = "cpu") -> None:
        self.file, self._device = VqlFile(path), device
        self.path = Path(path)
        self.codec = read_codec(self.file).to(device)
        self.about = replace(self.file.about, dtype=(dtype or self.file.about.dtype).upper())
        require(self.dtype in LABEL_TYPES, "dtype", dtype, "must be f16, bf16 or f32")
        self.torch_dtype = torch_type(self.dtype)

    @property
    def places(self) -> Sequence[Place]:  # type: ignore[override]
        return self.file.columns.places

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        columns = self.file.columns
        start, stop = int(columns.starts[index]), int(columns.starts[index + 1])
        if not self.codec.takes_sparse:
            check_batch_memory(self.file, stop - start)
        parts, first = list[Labels](), start
        for decoded in label_steps(self.file, self.codec, start, stop, self._device):
            parts.append(self._stored(decoded, first))
            first += len(decoded)
        labels = concatenate(parts) if parts else np.empty((0, self.classes), np.float16 if self.dtype == "F16" else np.float32)
        return columns.batch(index, labels), f"{self.path}, record {start}"

    def _stored(self, labels: Tensor | SparseLabels, first: int) -> Labels:
        """Decoded labels in the dtype of this source; bf16 as float32."""
        if isinstance(labels, SparseLabels):
            return labels.map_values(lambda values: self._narrow(values, first)).map(lambda tensor: tensor.cpu().numpy())
        narrowed: NDArray[np.floating] = self._narrow(labels, first).cpu().numpy()
        return narrowed

    def _narrow(self, values: Tensor, first: int) -> Tensor:
        narrowed = narrow(values, self.torch_dtype, self.file, first)
        return narrowed.float() if self.dtype == "BF16" else narrowed
