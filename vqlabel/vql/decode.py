"""Codes of a `.vql` -> labels on any device, and in the types that labels are stored in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs import LabelCodec, build_codec
from vqlabel.errors import BadContainer, UsageError, require
from vqlabel.vql.file import CODEC, VqlFile

DECODE_RECORDS, DECODE_BYTES = 2048, 32 << 20  # labels decoded at a time
STEP = 1 / 8  # between neighbouring values about the largest logit, at most: rounding to them costs less than 0.001 nats of KL
MAX_BATCH_NUMBERS = 1 << 30  # of the labels of a stored batch: 4.3 GB; 49,000 labels of 21,841 classes
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


def decode(file: VqlFile, codec: LabelCodec, codes: Tensor, record: NDArray[np.int64], views: Tensor | None = None) -> Tensor:
    """[n, C] labels of these records from their codes [n, m], and from the side information that the codec needs.

    Args:
        views: [n, 3, h, w] float32 in 0..1, the pixels that the teacher saw, for codecs that need them.

    Raises:
        UsageError: the codec needs the views, and there are none.
        BadContainer: see `as_bad_container`.
    """
    if "views" in codec.needs and views is None:
        raise UsageError(
            f"{file.container.path}: its labels are decoded from the pixels of their views: open it with vqlabel.VqlViews and the images"
        )
    with as_bad_container(file):
        return codec.decode(codes, replace(file.columns.context(record), views=views) if codec.needs else None)


@contextmanager
def as_bad_container(file: VqlFile) -> Iterator[None]:
    """Re-raise UsageError as BadContainer: inside one file, side information that lacks a field the prior needs, or names an image it does
    not know, means that the file is corrupt."""
    try:
        yield
    except UsageError as error:
        raise BadContainer(f"{file.container.path}: {str(error).partition('; ')[0]}; damaged or forged") from None


def as_tensor(codes: NDArray[np.unsignedinteger], device: str | torch.device = "cpu") -> Tensor:
    """Codes as a tensor: uint8 as it is, wider ones as int32."""
    return torch.from_numpy(codes if codes.dtype == np.uint8 else codes.astype(np.uint32).view(np.int32)).to(device)


def check_batch_memory(file: VqlFile, records: int) -> None:
    """Raises UsageError where the labels of a stored batch are more than MAX_BATCH_NUMBERS: codes of kilobytes can stand for terabytes."""
    numbers = records * file.classes
    require(
        numbers <= MAX_BATCH_NUMBERS,
        f"{file.container.path}: a stored batch",
        f"{records} labels of {file.classes} classes",
        f"takes {4 * numbers / 1e9:.0f} GB, above {4 * MAX_BATCH_NUMBERS / 1e9:.0f}: decode it by records, as dataset[first:stop]",
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
