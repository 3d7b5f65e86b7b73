"""Datasets of .h5 and .hdf5 files -> labels [n, C] or [epochs, n, C], read by rows."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra
from vqlabel.labels.layouts.choose import Selection, Stored, choose
from vqlabel.labels.layouts.rows import DEFLATE_MOST, Rows

SUFFIXES = (".h5", ".hdf5", ".hdf")
CHUNK_BYTES = 256 << 20  # of a chunk, which the library reads whole


class DatasetRows(Rows):
    """One dataset; its file is opened for every read, as a dump may have thousands."""

    def __init__(
        self,
        path: Path,
        dataset: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        domain: str | None,
        how: Selection,
        note: str | None,
    ) -> None:
        super().__init__(str(path), shape, dtype, domain, how.axes, note)
        self._path, self._dataset = path, dataset

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        layout = self.layout
        if layout.images_first:
            index: tuple[Any, ...] = (slice(start // layout.epochs, stop // layout.epochs),)
        elif layout.by_image:
            epoch, image = divmod(start, layout.images)
            index = (epoch, *(0,) * (layout.kept[1] - 1), slice(image, image + stop - start))
        else:
            index = (slice(start, stop),)
        with _open(self._path) as file:
            return np.asarray(file[self._dataset][index]).reshape(-1, layout.classes)


def open_dataset(path: Path, how: Selection) -> Rows:
    """The dataset of labels of one file; datasets in groups are called "group/name".

    Raises:
        MissingExtra: h5py is not installed.
        UsageError: there is no dataset of the name that `how` gives.
        BadLabels: none holds labels, or several may; it lies in other files, or is larger than its file can be.
    """
    found: dict[str, Stored] = {}
    with _open(path) as file:

        def visit(name: str, item: Any) -> None:
            if hasattr(item, "shape") and item.shape is not None:
                found[name] = Stored.of(item.shape, item.dtype)

        file.visititems(visit)  # follows no link to another file
        chosen = choose(found, how.array, path)
        dataset = file[chosen.name]
        _check(dataset, path)
        return DatasetRows(path, chosen.name, dataset.shape, dataset.dtype, chosen.domain, how, chosen.note)


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtra("h5py", "hdf5") from None
    return h5py.File(path, "r")


def _check(dataset: Any, path: Path) -> None:
    """Raises BadLabels where reading it would open other files, or fill the memory, or find labels that were never written."""
    name = dataset.name.removeprefix("/")
    if dataset.external or dataset.is_virtual:
        raise BadLabels(f"{path}: dataset {name!r} lies in other files; copy it into one: h5repack")
    held = dataset.id.get_storage_size()
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    most = DEFLATE_MOST * min(held, path.stat().st_size) if compressed else min(held, path.stat().st_size)
    if dataset.nbytes > most:
        raise BadLabels(
            f"{path}: dataset {name!r} {list(dataset.shape)} takes {dataset.nbytes} bytes and {held} are stored; it was not written to its end, or is forged"
        )
    chunk = int(np.prod(dataset.chunks or (1,), dtype=object)) * dataset.dtype.itemsize
    if chunk > CHUNK_BYTES:
        raise BadLabels(
            f"{path}: dataset {name!r} has chunks of {chunk} bytes; the limit is {CHUNK_BYTES}: h5repack -l CHUNK=1024x{dataset.shape[-1]}"
        )
