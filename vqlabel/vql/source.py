"""A `.vql` as a dump: labels decoded batch by batch, so that whatever reads dumps reads `.vql` files, too."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from vqlabel.dtypes import LABEL_TYPES, torch_type
from vqlabel.errors import require
from vqlabel.labels import LabelBatch, LabelSource, Place
from vqlabel.vql.decode import check_batch_memory, decode_steps, narrow, read_codec
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
        self.describe_as(self.file.about)
        self.dtype = (dtype or self.dtype).upper()
        require(self.dtype in LABEL_TYPES, "dtype", dtype, "must be f16, bf16 or f32")
        self.torch_dtype = torch_type(self.dtype)

    @property
    def places(self) -> Sequence[Place]:  # type: ignore[override]
        return self.file.columns.places

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        columns = self.file.columns
        start, stop = int(columns.starts[index]), int(columns.starts[index + 1])
        check_batch_memory(self.file, stop - start)
        parts = list(decode_steps(self.file, self.codec, start, stop, self._device))
        decoded = torch.cat(parts) if parts else torch.empty(0, self.classes, dtype=torch.float32, device="cpu")
        labels = narrow(decoded, self.torch_dtype, self.file, start).cpu()
        batch = columns.batch(index, (labels.float() if self.dtype == "BF16" else labels).numpy())
        return batch, f"{self.path}, record {start}"
