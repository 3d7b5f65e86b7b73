"""The items of one torch.save file <-> arrays, each checked before it is used: kinds, shapes, ranges."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import LabelSource

TYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64"}


def read_items(file: Path, counts: Sequence[int], layout: str, names: str) -> list[Any]:
    """The list in a file. NumPy's arrays of numbers among its items come as tensors; all are no larger than the file.

    Raises:
        BadLabels: it holds something else, or a list of a length that is not in `counts`; `names` says what belongs there.
    """
    items = unpickle(file)
    if not isinstance(items, list) or len(items) not in counts:
        kind = f"a list of {len(items)}" if isinstance(items, list) else type(items).__name__
        raise BadLabels(f"{file}: holds {kind}; {layout}'s batch is a list of {counts[0]} ({names})")
    return [plain(file, number, item) for number, item in enumerate(items)]


def list_length(file: Path) -> int:
    """How long the list in a file is; 0 where it holds something else, and for a file that nobody can read."""
    try:
        items = unpickle(file)
    except BadLabels:
        return 0
    return len(items) if isinstance(items, list) else 0


def plain(file: Path, number: int, item: Any) -> Any:
    """A tensor or an array of numbers as a tensor that `.numpy()` takes, no larger than its file; anything else as it is."""
    import torch

    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        return torch.from_numpy(item)
    if not isinstance(item, torch.Tensor):
        return item
    size = item.numel() * item.element_size()
    if size > file.stat().st_size:
        raise BadLabels(f"{file}: item {number} spans {size} bytes in a file of {file.stat().st_size}; save it with .contiguous()")
    return item.detach().resolve_neg()


def label_item(file: Path, number: int, item: Any, what: str = "logits [b, C]") -> tuple[NDArray[np.floating], str]:
    """Labels [b, C] and the type that is stored: "F16", "BF16", "F32" or "F64". bf16 is widened to float32, fp64 narrowed; see `narrowed`."""
    import torch

    if not isinstance(item, torch.Tensor) or str(item.dtype) not in TYPES or item.dim() != 2 or not len(item) or item.shape[1] < 2:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be {what}, fp16, bf16, fp32 or fp64, and not empty")
    kind = TYPES[str(item.dtype)]
    return np.array((item.float() if kind in ("BF16", "F64") else item).numpy()), kind


def narrowed(source: LabelSource, stored: str) -> str:
    """The type of a source's labels, of what its files store; where it is narrower, the source notes it."""
    if stored != "F64":
        return stored
    source.notes.append(f"{source.path}: float64 is narrowed to float32")
    return "F32"


def array_item(file: Path, number: int, item: Any, shape: tuple[int, ...], *types: str) -> NDArray[Any] | None:
    """A tensor of this shape and of one of these types ("float32", "bool", ...), or None where it is None."""
    import torch

    if item is None:
        return None
    if not isinstance(item, torch.Tensor) or tuple(item.shape) != shape or str(item.dtype).removeprefix("torch.") not in types:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be torch.{' or '.join(types)} {list(shape)} or None")
    return np.array(item.numpy())


def index_item(file: Path, number: int, item: Any, records: int, *types: str) -> NDArray[np.int64] | None:
    """mix_index: a slot of this batch for every record."""
    index = array_item(file, number, item, (records,), *types)
    if index is not None and not ((index >= 0) & (index < records)).all():
        raise BadLabels(f"{file}: mix_index leaves 0..{records - 1}, the slots of this batch")
    return None if index is None else index.astype(np.int64)


def lam_item(file: Path, item: Any) -> float | None:
    """mix_lam: a number in 0..1."""
    if item is not None and not (isinstance(item, int | float) and 0 <= item <= 1):
        raise BadLabels(f"{file}: mix_lam is {describe(item)}; it must be a number in 0..1 or None")
    return None if item is None else float(item)


def box_item(file: Path, item: Any) -> tuple[int, int, int, int] | None:
    """mix_bbox: four edges, as integers or as tensors of one integer."""
    import torch

    if item is None:
        return None
    if isinstance(item, list | tuple):
        item = [_number(v) if isinstance(v, torch.Tensor) else v for v in item]
    whole = isinstance(item, list) and len(item) == 4 and all(isinstance(v, int) and 0 <= v < 1 << 31 for v in item)
    if not whole:
        raise BadLabels(f"{file}: mix_bbox is {describe(item)}; it must be 4 non-negative integers or None")
    return int(item[0]), int(item[1]), int(item[2]), int(item[3])


def _number(tensor: Any) -> Any:
    """The integer of a tensor that has one, else the tensor."""
    one = tensor.numel() == 1 and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
    return int(tensor) if one else tensor


def describe(item: Any, depth: int = 1) -> str:
    """What it is, in a few words; never the repr of a foreign object, which may be of any size and depth."""
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        return f"{item.dtype} {list(item.shape)}"
    if isinstance(item, list | tuple) and depth:
        return f"{type(item).__name__} [{', '.join(describe(v, depth - 1) for v in item[:5])}]"
    return repr(item) if isinstance(item, float) or (isinstance(item, int) and abs(item) < 1 << 63) else type(item).__name__


def to_tensor(array: NDArray[Any] | None, kind: str | None = None) -> Any:
    """A tensor of its own, of the type `kind` names ("float16", "uint8", ...) or of the array's; None for None."""
    import torch

    if array is None:
        return None
    tensor = torch.tensor(np.ascontiguousarray(array), device="cpu")
    return tensor if kind is None else tensor.to(getattr(torch, kind))


def write_items(file: Path, items: list[Any] | dict[str, Any]) -> None:
    """torch.save tensors, numbers, strings, lists and dicts of them, and nothing else, so that torch.load(weights_only=True) takes it."""
    save(file, items)


def save(file: Path, value: Any) -> None:
    """torch.save to a new file.

    Raises:
        OSError: it cannot be written.
    """
    import torch

    file.open("wb").close()  # Python's reason where it cannot be opened
    try:
        torch.save(value, file)
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        torch.save(value, data := io.BytesIO())  # torch's writer does not tell why it failed: Python's does
        file.write_bytes(data.getvalue())
