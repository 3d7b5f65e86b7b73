"""`.vql` -> labels: batches on any device, or a file or tree in a layout that others read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs import LabelCodec, build_codec
from vqlabel.errors import BadContainer, TargetExists, UsageError, require
from vqlabel.files import appearing
from vqlabel.labels.sre2l import is_tree, write_batch, write_order
from vqlabel.progress import Progress, silent
from vqlabel.vql import CODEC, VqlFile

DECODE_RECORDS, DECODE_BYTES = 2048, 32 << 20  # labels decoded at a time
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def read_codec(file: VqlFile) -> LabelCodec:
    """The decoder that travels in a `.vql`.

    Raises:
        BadContainer: its tensors do not fit its configuration, or the codes' widths do not fit it.
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
        codec = build_codec(file.codec["kind"], file.codec["config"], tensors)
    except BadContainer as error:
        raise BadContainer(f"{file.container.path}: {error}") from None
    if tuple(codec.code_bits) != file.code_bits:
        raise BadContainer(
            f"{file.container.path}: codes of {file.code_bits[:4]} bits, the codec has {codec.code_bits[:4]}; damaged or forged"
        )
    return codec


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
        out: `.npy` or `.safetensors` (tensor "logits" or "probs", [n, C]), or a folder: SRe2L's tree.
        layout: "sre2l" for a folder; a folder has no other.
        records: first record and the one after the last; None: from the start, to the end. Files only.
        dtype: "f16", "bf16" or "f32"; None: the dump's.

    Raises:
        UsageError: a range outside the file, an unknown suffix, bf16 in a .npy, a value that f16 (bf16) cannot hold.
        TargetExists: `out` is there and `overwrite` is false.
        BadContainer: the `.vql` is damaged.
    """
    file, target = VqlFile(path), Path(out)
    codec = read_codec(file).to(device)
    name = (dtype or file.label["dtype"]).upper()
    require(name in DTYPES, "dtype", dtype, "must be f16, bf16 or f32")
    start, stop, _ = slice(*records).indices(file.records)
    if any(r is not None and not -file.records <= r <= file.records for r in records) or start > stop:
        raise UsageError(f"records {records[0]}:{records[1]} leave 0:{file.records}")
    tree = target.suffix not in (".npy", ".safetensors")
    require(layout in (None, "sre2l"), "layout", layout, "must be sre2l, or left out for a .npy or .safetensors file")
    require(tree or layout is None, "layout", layout, f"needs a folder, and {target} is a file name")
    require(
        not tree or layout or file.source.get("layout") == "sre2l",
        "out",
        str(out),
        "must end in .npy or .safetensors; for a tree pass --layout sre2l",
    )
    if tree:
        whole = (start, stop) == (0, file.records)
        require(whole, "records", f"{start}:{stop}", "needs a .npy or .safetensors target: a tree has whole batches")
        if target.is_dir() and not is_tree(target):
            raise TargetExists(
                f"{target} is a folder with other things in it; name a new one, or one that holds such a tree and nothing else"
            )
    with appearing(target, overwrite=overwrite) as partial:
        if tree:
            _write_tree(file, codec, partial, DTYPES[name], device, progress)
        else:
            with partial.open("wb") as handle:
                _write_file(file, codec, handle, target.suffix, (start, stop), name, device, progress)
    return {"path": str(target), "records": stop - start, "classes": file.classes, "dtype": name.lower()}


def _write_file(
    file: VqlFile,
    codec: LabelCodec,
    out: IO[bytes],
    suffix: str,
    span: tuple[int, int],
    dtype: str,
    device: str,
    progress: Progress,
) -> None:
    """Header, then labels as they are decoded: memory stays that of a step."""
    shape = (span[1] - span[0], file.classes)
    if suffix == ".npy":
        require(
            dtype != "BF16", "dtype", "bf16", "cannot be written to .npy, which has no such type; use .safetensors or --dtype f32"
        )
        kind = np.dtype("<f2" if dtype == "F16" else "<f4")
        np.lib.format.write_array_header_1_0(
            out, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        )
    else:
        size = shape[0] * shape[1] * (4 if dtype == "F32" else 2)
        tensor = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": {"domain": file.label["domain"]}, file.label["domain"]: tensor}).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        out.write(len(text).to_bytes(8, "little") + text)
    done = 0
    for labels in decode_steps(file, codec, *span, device):
        out.write(to_bytes(narrow(labels, DTYPES[dtype], file, span[0] + done)))
        done += len(labels)
        progress("unpacking", done, shape[0], {})


def narrow(labels: Tensor, dtype: torch.dtype, file: VqlFile, first: int) -> Tensor:
    """[n, C] float32, the records from `first` on, as `dtype`.

    Raises:
        UsageError: a value lies outside what `dtype` holds, and would become infinite.
    """
    short = labels.to(dtype)
    if not len(labels) or torch.stack(torch.aminmax(labels)).to(dtype).isfinite().all():  # 10 times as fast as to ask every value
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


def to_bytes(labels: Tensor) -> memoryview:
    """[n, C] -> its bytes, little-endian."""
    return labels.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def _write_tree(file: VqlFile, codec: LabelCodec, folder: Path, dtype: torch.dtype, device: str, progress: Progress) -> None:
    """SRe2L's tree, with LPLD's order file where the order is known."""
    columns, order = file.columns, dict[int, list[int]]()
    folder.mkdir()
    for at, place in enumerate(columns.places):
        parts = list(decode_steps(file, codec, int(columns.starts[at]), int(columns.starts[at + 1]), device))
        whole = torch.cat(parts) if parts else torch.empty(0, file.classes)
        labels = narrow(whole, dtype, file, int(columns.starts[at])).cpu()
        batch = columns.batch(at, labels.float().numpy() if dtype == torch.bfloat16 else labels.numpy())
        write_batch(folder, batch, as_bf16=dtype == torch.bfloat16)
        if batch.image is not None:
            order.setdefault(place.epoch, []).extend(batch.image.tolist())
        progress("unpacking", at + 1, len(columns.places), {})
    if order:
        write_order(folder, order)
