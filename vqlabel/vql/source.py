"""A `.vql` as a dump: labels decoded batch by batch, for everything that reads dumps."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from vqlabel.errors import require
from vqlabel.labels import LabelBatch, LabelSource, Place
from vqlabel.vql.decode import DTYPES, check_batch_memory, decode_steps, narrow, read_codec
from vqlabel.vql.file import VqlFile


class VqlSource(LabelSource):
    """The labels of a `.vql` as a dump: its stored batches, decoded when they are read.

    Args:
        dtype: "f16", "bf16" or "f32"; None: the dump's.

    Raises:
        UsageError: no such file, no such dtype.
        BadContainer: the `.vql` is damaged.
    """

    def __init__(self, path: str | PathLike[str], *, dtype: str | None = None, device: str = "cpu") -> None:
        self.file, self._device = VqlFile(path), device
        self.path = Path(path)
        self.codec = read_codec(self.file).to(device)
        self.describe_as(self.file.about)
        self.dtype = (dtype or self.dtype).upper()
        require(self.dtype in DTYPES, "dtype", dtype, "must be f16, bf16 or f32")
        self.torch_dtype = DTYPES[self.dtype]

    @property
    def places(self) -> Sequence[Place]:  # type: ignore[override]
        return self.file.columns.places

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        columns = self.file.columns
        start, stop = int(columns.starts[at]), int(columns.starts[at + 1])
        check_batch_memory(self.file, stop - start)
        parts = list(decode_steps(self.file, self.codec, start, stop, self._device))
        whole = torch.cat(parts) if parts else torch.empty(0, self.classes, dtype=torch.float32, device="cpu")
        labels = narrow(whole, self.torch_dtype, self.file, start).cpu()
        return columns.batch(at, (labels.float() if self.dtype == "BF16" else labels).numpy()), f"{self.path}, record {start}"
