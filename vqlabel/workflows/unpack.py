"""`.vql` -> labels: batches on any device, or a file or tree in a layout that others read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs import LabelCodec, build_codec
from vqlabel.errors import BadContainer, UsageError, require
from vqlabel.labels import LabelBatch, LabelSource, Place, writing
from vqlabel.labels.layouts.arrays import ArrayWriter
from vqlabel.labels.open import written_as
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.file import CODEC, VqlFile

DECODE_RECORDS, DECODE_BYTES = 2048, 32 << 20  # labels decoded at a time
STEP = 1 / 8  # between neighbouring values about the largest logit, at most: rounding to them costs less than 0.001 nats of KL
BATCH_NUMBERS_MOST = 1 << 30  # of the labels of a stored batch: 4.3 GB; 49,000 labels of 21,841 classes
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def read_codec(file: VqlFile) -> LabelCodec:
    """The decoder that travels in a `.vql`.

    Raises:
        BadContainer: its tensors do not fit its configuration.
    """
    kinds = {"I8": torch.int8, "U8": torch.uint8, "F16": torch.float16, "F32": torch.float32}
    tensors = {}
    for name, section in file.container.sections.items():
        if name.startswith(CODEC):
            if section.dtype not in kinds:
                raise BadContainer(
                    f"{file.container.path}: codec tensor {name!r} is {section.dtype}; I8, U8, F16 or F32 belong there"
                )
            tensors[name.removeprefix(CODEC)] = torch.from_numpy(file.container.tensor(name)).to(kinds[section.dtype])
    try:
        return build_codec(file.codec["kind"], file.codec["config"], tensors)
    except BadContainer as error:
        raise BadContainer(f"{file.container.path}: {error}") from None


def decode_steps(file: VqlFile, codec: LabelCodec, start: int, stop: int, device: str = "cpu") -> Iterator[Tensor]:
    """Labels of records start:stop, [n, C] float32 on `device` at a time: n <= 2048, and less where 2048 labels take over 32 MiB."""
    step = max(1, min(DECODE_RECORDS, DECODE_BYTES // (4 * file.classes)))
    for at in range(start, stop, step):
        end = min(at + step, stop)
        with torch.inference_mode():  # not around the yield: the mode would be on in the caller's code
            labels = decode(file, codec, as_tensor(file.codes(at, end), device), np.arange(at, end))
        yield labels


def decode(file: VqlFile, codec: LabelCodec, codes: Tensor, record: NDArray[np.int64]) -> Tensor:
    """[n, C] labels of these records from their codes [n, m], and from what the file says of them where the codec asks for it.

    Raises:
        BadContainer: see `blaming`.
    """
    with blaming(file):
        return codec.decode(codes, file.columns.context(record) if codec.uses_context else None)


@contextmanager
def blaming(file: VqlFile) -> Iterator[None]:
    """A context that says too little for the codec, or names an image that the codec's prior has not, makes a file contradict itself:
    BadContainer."""
    try:
        yield
    except UsageError as error:
        raise BadContainer(f"{file.container.path}: {str(error).partition('; ')[0]}; damaged or forged") from None


def as_tensor(codes: NDArray[np.unsignedinteger], device: str | torch.device = "cpu") -> Tensor:
    """Codes as a tensor: uint8 as it is, wider ones as int32."""
    return torch.from_numpy(codes if codes.dtype == np.uint8 else codes.astype(np.uint32).view(np.int32)).to(device)


@large_operations()
@check_argument_types
def unpack(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    layout: str | None = None,
    records: tuple[int | None, int | None] = (None, None),
    dtype: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Decode a `.vql` into a file or a tree; it appears whole or not at all.

    Args:
        out: `.npy` or `.safetensors` (tensor "logits" or "probs", [n, C]), or what `layout` writes.
        layout: one that `vqlabel.labels.WRITERS` names, with its form after a colon, such as "lpqld:10"; None: as `out` ends, or the layout
            that the labels came in.
        records: first record and the one after the last; None: from the start, to the end. Files only.
        dtype: "f16", "bf16" or "f32"; None: the dump's.

    Raises:
        UsageError: a range outside the file, an unknown suffix, bf16 in a .npy, a value that f16 (bf16) cannot hold, a layout that cannot
            hold these labels or their augmentation; or a target that `storage.targets.AtomicTarget` or `storage.apart.check_apart` refuses.
        TargetExists: `out` is there and `overwrite` is false.
        BadContainer: the `.vql` is damaged.
    """
    target = Path(out)
    source = VqlSource(path, dtype=dtype, device=device)
    file, (start, stop, _) = source.file, slice(*records).indices(source.file.records)
    if any(r is not None and not -file.records <= r <= file.records for r in records) or start > stop:
        raise UsageError(f"records {records[0]}:{records[1]} leave 0:{file.records}")
    layout = written_as(target, layout, source.layout)
    check_apart(target, path)
    if not layout.startswith("arrays:"):
        whole = (start, stop) == (0, file.records)
        require(whole, "records", f"{start}:{stop}", "needs a .npy or .safetensors target: other layouts have whole batches")
    with writing(target, source.about, layout, overwrite=overwrite) as writer:
        if isinstance(writer, ArrayWriter):
            for labels in decode_steps(file, source.codec, start, stop, device):
                writer.append(to_bytes(narrow(labels, source.torch_dtype, file, start + writer.rows)))
                progress("unpacking", writer.rows, stop - start, {})
        else:
            for at, batch in enumerate(source):
                writer.add(batch)
                progress("unpacking", at + 1, len(source), {})
    found = {"path": str(target), "records": stop - start, "classes": file.classes, "dtype": source.dtype.lower()}
    return {**found, **noted(writer.notes)}


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


def check_batch_memory(file: VqlFile, records: int) -> None:
    """Raises UsageError where the labels of a stored batch are more than BATCH_NUMBERS_MOST: codes of kilobytes can stand for terabytes."""
    numbers = records * file.classes
    require(
        numbers <= BATCH_NUMBERS_MOST,
        f"{file.container.path}: a stored batch",
        f"{records} labels of {file.classes} classes",
        f"takes {4 * numbers / 1e9:.0f} GB, above {4 * BATCH_NUMBERS_MOST / 1e9:.0f}: decode it by records, as dataset[first:stop]",
    )


def narrow(labels: Tensor, dtype: torch.dtype, file: VqlFile, first: int) -> Tensor:
    """[n, C] float32, the records from `first` on, as `dtype`. All that leaves float32 goes through here.

    Where softmax is all that sees a label (logits whose shift the file does not preserve), no value is lost: see `_within_reach`.

    Raises:
        UsageError: a value lies outside what `dtype` holds, and would become infinite.
    """
    if not len(labels) or dtype == torch.float32:
        return labels.to(dtype)
    low, high = (float(bound) for bound in torch.aminmax(labels))  # 10 times as fast as to ask every value
    if max(-low, high) >= _coarse_from(dtype) and file.label["domain"] == "logits" and not file.label["shift_preserved"]:
        return _within_reach(labels, dtype)
    short = labels.to(dtype)
    if torch.tensor([low, high], device="cpu").to(dtype).isfinite().all():
        return short
    lost = short.isinf() & labels.isfinite()  # a damaged raw label that is infinite already is none of ours
    if not lost.any():
        return short
    row, column = (int(i) for i in lost.nonzero()[0])
    name = next(name for name, kind in DTYPES.items() if kind == dtype).lower()
    raise UsageError(
        f"{file.container.path}: record {first + row}, class {column} decodes to {float(labels[row, column]):.7g}; "
        f"{name} ends at {torch.finfo(dtype).max:.7g}: unpack with --dtype f32"
    )


def _coarse_from(dtype: torch.dtype) -> float:
    """The magnitude from which on values of `dtype` lie more than STEP apart: 256 for f16, 32 for bf16."""
    return 2 * STEP / torch.finfo(dtype).eps


def _within_reach(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, C] logits whose level is free, as `dtype`: a label whose largest logit lies where `dtype` is coarse is shifted until that is 0.

    Masked classes put it there: with most of the classes at -1e4, the mean of a label is 0 where the others are at 8,000, and halves
    have steps of 4 there. What lies below the range of `dtype` has probability 0 at its end, too.
    """
    top = logits.amax(1, keepdim=True)
    shifted = torch.where(top.abs() >= _coarse_from(dtype), logits - top, logits)
    return shifted.clamp_min(torch.finfo(dtype).min).to(dtype)


def to_bytes(labels: Tensor) -> memoryview:
    """[n, C] -> its bytes, little-endian."""
    return labels.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
