"""Datasets of .h5 and .hdf5 files -> labels [n, C] or [epochs, n, C], read by rows."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra
from vqlabel.labels.layouts.rows import MAX_DEFLATE_RATIO, Rows
from vqlabel.labels.layouts.select_array import ArrayInfo, Selection, select_array

SUFFIXES = (".h5", ".hdf5", ".hdf")
MAX_CHUNK_BYTES = 256 << 20  # the library reads a chunk as a whole


class DatasetRows(Rows):
    """The rows of one dataset; its file is opened for every read, because a dump may have thousands of files."""

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        layout = self.layout
        if layout.images_first:
            index: tuple[Any, ...] = (slice(start // layout.epochs, stop // layout.epochs),)
        elif layout.by_image:
            epoch, image = divmod(start, layout.images)
            index = (epoch, *(0,) * (layout.kept[1] - 1), slice(image, image + stop - start))
        else:
            index = (slice(start, stop),)
        with _open(self.path) as file:
            return np.asarray(file[self.array][index]).reshape(-1, layout.classes)


def open_dataset(path: Path, selection: Selection) -> Rows:
    """The dataset of labels of one file; a dataset in a group is named "group/name".

    Raises:
        MissingExtra: h5py is not installed.
        UsageError: there is no dataset of the name in `selection`.
        BadLabels: no dataset holds labels, or several may; or it lies in other files, or is larger than its file can
            hold.
    """
    datasets: dict[str, ArrayInfo] = {}
    with _open(path) as file:

        def visit(name: str, item: Any) -> None:
            if hasattr(item, "shape") and item.shape is not None:
                datasets[name] = ArrayInfo.of(item.shape, item.dtype)

        file.visititems(visit)  # follows no links to other files
        labels = select_array(datasets, selection.array, path)
        dataset = file[labels.name]
        _check(dataset, path)
        return DatasetRows(path, labels, dataset.shape, dataset.dtype, selection.axes)


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtra("h5py", "hdf5") from None
    return h5py.File(path, "r")


def _check(dataset: Any, path: Path) -> None:
    """Raises BadLabels if reading would open other files, exhaust the memory, or return unwritten labels."""
    name = dataset.name.removeprefix("/")
    if dataset.external or dataset.is_virtual:
        raise BadLabels(f"{path}: dataset {name!r} lies in other files; copy it into one file: h5repack")
    stored = dataset.id.get_storage_size()
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    max_size = min(stored, path.stat().st_size) * (MAX_DEFLATE_RATIO if compressed else 1)
    if dataset.nbytes > max_size:
        raise BadLabels(
            f"{path}: dataset {name!r} {list(dataset.shape)} has {dataset.nbytes} bytes, but {stored} are stored; it was not written "
            "completely, or is forged"
        )
    chunk = int(np.prod(dataset.chunks or (1,), dtype=object)) * dataset.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise BadLabels(
            f"{path}: dataset {name!r} has chunks of {chunk} bytes; the limit is {MAX_CHUNK_BYTES}: h5repack -l CHUNK=1024x{dataset.shape[-1]}"
        )
