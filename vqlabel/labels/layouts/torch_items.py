"""The items of a torch.save file <-> arrays, each checked before it is used: type, shape, range."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.label_dtypes import NARROWED_NOTE, torch_dtype_name
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import LabelSource


def read_items(file: Path, lengths: Sequence[int], system: str, names: str) -> list[Any]:
    """The list in a file, with NumPy arrays of numbers as tensors.

    Args:
        lengths: the lengths that the list may have.
        system: whose layout it is, for messages.
        names: of the items, for messages.

    Raises:
        BadLabels: the file holds something else, or an item spans more bytes than the file.
    """
    items = unpickle(file)
    if not isinstance(items, list) or len(items) not in lengths:
        kind = f"a list of {len(items)}" if isinstance(items, list) else type(items).__name__
        raise BadLabels(f"{file}: contains {kind}; a batch of {system} is a list of {lengths[0]} ({names})")
    return [to_plain(file, number, item) for number, item in enumerate(items)]


def list_length(file: Path) -> int:
    """The length of the list in a file; 0 if it holds something else, or cannot be read."""
    try:
        items = unpickle(file)
    except BadLabels:
        return 0
    return len(items) if isinstance(items, list) else 0


def to_plain(file: Path, number: int, item: Any) -> Any:
    """A tensor, or array of numbers, as a tensor whose `.numpy()` works; any other item unchanged.

    Raises:
        BadLabels: a tensor spans more bytes than its file, such as an expanded one.
    """
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
    """Labels [b, C], and their stored type: "F16", "BF16", "F32" or "F64". bf16 and fp64 are converted to float32.

    Raises:
        BadLabels: the item is not labels; `what` names what it must be.
    """
    import torch

    stored = torch_dtype_name(item.dtype) if isinstance(item, torch.Tensor) else None
    if stored is None or item.dim() != 2 or not len(item) or item.shape[1] < 2:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be {what}, fp16, bf16, fp32 or fp64, and not empty")
    return np.array((item.float() if stored in ("BF16", "F64") else item).numpy()), stored


def label_dtype(source: LabelSource, stored: str) -> str:
    """The type of a source's labels whose files store `stored`; adds a note to the source if they are narrowed."""
    if stored != "F64":
        return stored
    source.notes.append(f"{source.path}: {NARROWED_NOTE}")
    return "F32"


def array_item(file: Path, number: int, item: Any, shape: tuple[int, ...], *types: str) -> NDArray[Any] | None:
    """The array of a tensor of this shape and of one of these types ("float32", "bool", ...); None for None.

    Raises:
        BadLabels: the item is something else.
    """
    import torch

    if item is None:
        return None
    if not isinstance(item, torch.Tensor) or tuple(item.shape) != shape or str(item.dtype).removeprefix("torch.") not in types:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be torch.{' or '.join(types)} {list(shape)} or None")
    return np.array(item.numpy())


def index_item(file: Path, number: int, item: Any, records: int, *types: str) -> NDArray[np.int64] | None:
    """mix_index [records]: for each record the slot in its batch of the view mixed in.

    Raises BadLabels as `array_item`, or out of range.
    """
    index = array_item(file, number, item, (records,), *types)
    if index is not None and not ((index >= 0) & (index < records)).all():
        raise BadLabels(f"{file}: mix_index has values outside 0..{records - 1}, the slots of this batch")
    return None if index is None else index.astype(np.int64)


def lam_item(file: Path, item: Any) -> float | None:
    """mix_lam: a number in 0..1; raises BadLabels for anything else."""
    if item is not None and not (isinstance(item, int | float) and 0 <= item <= 1):
        raise BadLabels(f"{file}: mix_lam is {describe(item)}; it must be a number in 0..1 or None")
    return None if item is None else float(item)


def box_item(file: Path, item: Any) -> tuple[int, int, int, int] | None:
    """mix_bbox: four edges in pixels, integers or one-element integer tensors; raises BadLabels for anything else."""
    import torch

    if item is None:
        return None
    if isinstance(item, list | tuple):
        item = [_to_integer(edge) if isinstance(edge, torch.Tensor) else edge for edge in item]
    valid = isinstance(item, list) and len(item) == 4 and all(isinstance(edge, int) and 0 <= edge < 1 << 31 for edge in item)
    if not valid:
        raise BadLabels(f"{file}: mix_bbox is {describe(item)}; it must be 4 non-negative integers or None")
    return int(item[0]), int(item[1]), int(item[2]), int(item[3])


def _to_integer(tensor: Any) -> Any:
    """The value of a one-element integer tensor; any other tensor unchanged."""
    is_integer = tensor.numel() == 1 and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
    return int(tensor) if is_integer else tensor


def describe(item: Any, depth: int = 1) -> str:
    """Type and shape of an item, for messages; not the repr of an unknown object, which may be of any size."""
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        return f"{item.dtype} {list(item.shape)}"
    if isinstance(item, list | tuple) and depth:
        return f"{type(item).__name__} [{', '.join(describe(element, depth - 1) for element in item[:5])}]"
    return repr(item) if isinstance(item, float) or (isinstance(item, int) and abs(item) < 1 << 63) else type(item).__name__


def to_tensor(array: NDArray[Any] | None, dtype: str | None = None) -> Any:
    """A copy of an array as a tensor, of type `dtype` ("float16", "uint8", ...) or the array's own; None for None."""
    import torch

    if array is None:
        return None
    tensor = torch.tensor(np.ascontiguousarray(array), device="cpu")
    return tensor if dtype is None else tensor.to(getattr(torch, dtype))


def write_items(file: Path, items: list[Any] | dict[str, Any]) -> None:
    """torch.save tensors, numbers, strings, and lists and dicts of them, which torch.load(weights_only=True) reads."""
    save(file, items)


def save(file: Path, value: Any) -> None:
    """torch.save to a new file.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    file.open("wb").close()  # if the file cannot be opened, Python's error has the reason
    try:
        torch.save(value, file)
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        torch.save(value, data := io.BytesIO())  # torch's zip writer hides why it failed: Python's error has the reason
        file.write_bytes(data.getvalue())
