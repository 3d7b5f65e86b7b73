"""Codes of a `.vql` -> labels on any device, and labels -> the dtypes of dumps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs import LabelCodec, build_codec
from vqlabel.dtypes import stored_type, torch_type
from vqlabel.errors import BadContainer, UsageError, require
from vqlabel.labels import SparseLabels
from vqlabel.vql.file import CODEC, VqlFile

DECODE_RECORDS, DECODE_BYTES = 2048, 32 << 20  # labels decoded at a time, as records and as bytes of float32
MAX_STEP = 1 / 8  # between neighbouring values near a label's largest logit; such rounding adds less than 0.001 nats of KL
MAX_BATCH_NUMBERS = 1 << 30  # labels x classes of a stored batch: 4.3 GB of float32, such as 49,000 labels of 21,841 classes
TENSOR_TYPES = ("I8", "U8", "F16", "F32")  # of a decoder


def read_codec(file: VqlFile) -> LabelCodec:
    """The decoder that is stored in a `.vql`.

    Raises:
        BadContainer: its tensors do not fit its configuration.
    """
    tensors = {}
    for name, section in file.container.sections.items():
        if name.startswith(CODEC):
            if section.dtype not in TENSOR_TYPES:
                raise BadContainer(
                    f"{file.container.path}: codec tensor {name!r} is {section.dtype}; it must be I8, U8, F16 or F32"
                )
            tensors[name.removeprefix(CODEC)] = torch.from_numpy(file.container.tensor(name)).to(torch_type(section.dtype))
    try:
        codec = build_codec(file.codec["kind"], file.codec["config"], tensors)
    except BadContainer as error:
        raise BadContainer(f"{file.container.path}: {error}") from None
    assert isinstance(codec, LabelCodec)  # `VqlFile` refuses labels of documents
    return codec


def decode_steps(file: VqlFile, codec: LabelCodec, start: int, stop: int, device: str = "cpu") -> Iterator[Tensor]:
    """Yield the labels of records start:stop as [n, C] float32 on `device`.

    n <= DECODE_RECORDS, and n * C * 4 <= DECODE_BYTES if n > 1.
    """
    step = max(1, min(DECODE_RECORDS, DECODE_BYTES // (4 * file.classes)))
    for first in range(start, stop, step):
        end = min(first + step, stop)
        with torch.inference_mode():  # not around the yield: the mode would be on in the caller's code
            labels = decode(file, codec, as_tensor(file.codes(first, end), device), np.arange(first, end))
        yield labels


def label_steps(file: VqlFile, codec: LabelCodec, start: int, stop: int, device: str = "cpu") -> Iterator[Tensor | SparseLabels]:
    """As `decode_steps`, but sparse labels of DECODE_RECORDS at most if the codec has them."""
    if not codec.takes_sparse:
        yield from decode_steps(file, codec, start, stop, device)
        return
    for first in range(start, stop, DECODE_RECORDS):
        end = min(first + DECODE_RECORDS, stop)
        with torch.inference_mode(), as_bad_container(file):
            context = file.columns.context(np.arange(first, end)) if codec.needs else None
            labels = codec.decode_sparse(as_tensor(file.codes(first, end), device), context)
        yield labels


def decode(file: VqlFile, codec: LabelCodec, codes: Tensor, record: NDArray[np.int64], views: Tensor | None = None) -> Tensor:
    """Decode records to labels [n, C], with the side information that the codec needs.

    Args:
        codes: [n, m] of the records, on the device of the codec.
        record: [n] indices of the records.
        views: [n, 3, h, w] float32 in 0..1, the pixels that the teacher saw, for codecs that need them.

    Raises:
        UsageError: the codec needs the views, but `views` is None.
        BadContainer: see `as_bad_container`.
    """
    if "views" in codec.needs and views is None:
        raise UsageError(
            f"{file.container.path}: its codec decodes labels from the pixels of their views: open it with vqlabel.VqlViews and the images"
        )
    with as_bad_container(file):
        return codec.decode(codes, replace(file.columns.context(record), views=views) if codec.needs else None)


@contextmanager
def as_bad_container(file: VqlFile) -> Iterator[None]:
    """Re-raise UsageError as BadContainer: inside one file, a context that lacks a field the prior needs, or an unknown
    image index, means that the file is corrupt.
    """
    try:
        yield
    except UsageError as error:
        raise BadContainer(f"{file.container.path}: {str(error).partition('; ')[0]}; damaged or forged") from None


def as_tensor(codes: NDArray[np.unsignedinteger], device: str | torch.device = "cpu") -> Tensor:
    """Codes as a tensor: uint8 unchanged, wider types as int32."""
    return torch.from_numpy(codes if codes.dtype == np.uint8 else codes.astype(np.uint32).view(np.int32)).to(device)


def check_batch_memory(file: VqlFile, records: int) -> None:
    """Raises UsageError if a stored batch exceeds MAX_BATCH_NUMBERS numbers: few codes can decode to terabytes."""
    numbers = records * file.classes
    require(
        numbers <= MAX_BATCH_NUMBERS,
        f"{file.container.path}: a stored batch",
        f"{records} labels of {file.classes} classes",
        f"takes {4 * numbers / 1e9:.0f} GB, above {4 * MAX_BATCH_NUMBERS / 1e9:.0f}: decode it by records, as dataset[first:stop]",
    )


def narrow(labels: Tensor, dtype: torch.dtype, file: VqlFile, first: int) -> Tensor:
    """Convert labels [n, C] from float32 to `dtype`. All conversions of decoded labels use this function.

    Logits whose shift the file does not preserve have a meaning only through softmax; labels with too large logits are
    shifted, so that no value overflows, see `_shift_into_range`.

    Args:
        first: index of the first record, for messages.

    Raises:
        UsageError: a value is outside the range of `dtype` and would become infinite.
    """
    if not len(labels) or dtype == torch.float32:
        return labels.to(dtype)
    low, high = (float(bound) for bound in torch.aminmax(labels))  # 10 times as fast as a test of every value
    if max(-low, high) >= _coarse_from(dtype) and file.label["domain"] == "logits" and not file.label["shift_preserved"]:
        return _shift_into_range(labels, dtype)
    narrowed = labels.to(dtype)
    if torch.tensor([low, high], device="cpu").to(dtype).isfinite().all():
        return narrowed
    overflows = narrowed.isinf() & labels.isfinite()  # labels of a damaged raw file may be infinite before the conversion
    if not overflows.any():
        return narrowed
    row, column = (int(i) for i in overflows.nonzero()[0])
    raise UsageError(
        f"{file.container.path}: record {first + row}, class {column} decodes to {float(labels[row, column]):.7g}; "
        f"the maximum of {stored_type(dtype).lower()} is {torch.finfo(dtype).max:.7g}: unpack with --dtype f32"
    )


def _coarse_from(dtype: torch.dtype) -> float:
    """The magnitude above which neighbouring values of `dtype` differ by over MAX_STEP: 256 for f16, 32 for bf16."""
    return 2 * MAX_STEP / torch.finfo(dtype).eps


def _shift_into_range(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, C] logits as `dtype`; a label whose largest logit is above `_coarse_from(dtype)` is shifted so that this
    logit is 0.

    Masked classes cause such logits: decoded labels have mean 0, so if most classes are at -1e4, the others are near
    8,000, where float16 has steps of 4. Logits below the range of `dtype` are clamped to its minimum, where their
    probability is 0, too.
    """
    top = logits.amax(1, keepdim=True)
    shifted = torch.where(top.abs() >= _coarse_from(dtype), logits - top, logits)
    return shifted.clamp_min(torch.finfo(dtype).min).to(dtype)


def to_bytes(labels: Tensor) -> memoryview:
    """Labels [n, C] -> their bytes, little-endian."""
    return labels.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
