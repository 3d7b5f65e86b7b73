"""HALD's files, one per epoch <-> label batches.

epoch_E.tar                torch.save list of all batches of an epoch, each a list of 6 as in layouts/sre2l.py, but with
                           coords f16 or f32, boxes of NumPy integers, and probabilities f16 or f32 [b, C] in place of
                           logits
sampler_indices_dict.pt    torch.save dict {"0": [image index of every record of epoch 0, in order], ...}

The probabilities are the teacher's at the students' temperature, softmax(logits / T). The folder's name has T:
FKD_..._slc20_... is T = 20. Students compare them with softmax(logits / T) as they are, so here they are probabilities
at temperature 1, like any others.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch, Place
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.sre2l import ITEMS, parse_six, refuse_columns, refuse_form, require_images, six_items
from vqlabel.labels.layouts.torch_items import describe, label_dtype, to_plain, to_tensor, write_items
from vqlabel.labels.layouts.tree import Indices, check_indices, missing_batches
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.writer import LabelWriter

ORDER_FILE = "sampler_indices_dict.pt"
EPOCH_FILE = r"epoch_(\d{1,9})\.tar"


class HaldSource(LabelSource):
    """A folder of such files; one epoch is in memory.

    Raises:
        BadLabels: there is no such file, or the first one is malformed; when reading, if an epoch has another number of
            batches than the first.
    """

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path = path
        self._files = find_epochs(path)
        if not self._files:
            raise BadLabels(f"{path}: contains no epoch_E.tar; HALD's dump has one for every epoch")
        order_file = path / ORDER_FILE
        self._order = read_order(order_file) if order_file.exists() else None
        self._cached_epoch: tuple[int, list[Any]] = -1, []
        first_epoch = next(iter(self._files))
        self._batches_per_epoch = len(self._epoch(first_epoch))
        self.places = [Place(epoch, batch) for epoch in self._files for batch in range(self._batches_per_epoch)]
        first, self._stored_dtype, self._stored_coords = self._parse(Place(first_epoch, 0))
        temperature = teacher_temperature(path)
        self.about = About(
            layout="hald",
            classes=first.labels.shape[1],
            domain=domain or "probs",
            dtype=label_dtype(self, self._stored_dtype),
            order="none" if self._order is None else "explicit",
            temperature=1.0,
            details={"coords": self._stored_coords, "teacher_temperature": temperature},
        )
        self.notes += missing_batches(path, [Place(epoch, 0) for epoch in self._files])
        if self.domain == "probs":
            self.notes.append(f"{path}: {_temperature_note(temperature)}")

    def _epoch(self, epoch: int) -> list[Any]:
        """The batches of an epoch, each a list of 6."""
        if self._cached_epoch[0] != epoch:
            file = self._files[epoch]
            batches = unpickle(file)
            if not isinstance(batches, list) or not batches or not all(map(_is_batch, batches)):
                raise BadLabels(
                    f"{file}: contains {describe(batches)}; HALD's epoch is a list of batches, each a list of 6 ({ITEMS})"
                )
            self._cached_epoch = epoch, batches
        return self._cached_epoch[1]

    def _parse(self, place: Place) -> tuple[LabelBatch, str, str]:
        """A batch without its images, and the stored types of its labels and coords."""
        file = self._files[place.epoch]
        items = [to_plain(file, number, item) for number, item in enumerate(self._epoch(place.epoch)[place.batch])]
        coords = str(getattr(items[0], "dtype", "torch.float32")).removeprefix("torch.")
        if coords == "float16":
            items[0] = items[0].float()
        return *parse_six(file, place, items), coords

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self._files[self.places[index].epoch],)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        place = self.places[index]
        file, batches = self._files[place.epoch], self._epoch(place.epoch)
        name = f"{file}, batch {place.batch}"
        if len(batches) != self._batches_per_epoch:
            raise BadLabels(
                f"{file}: has {len(batches)} batches, but the first epoch has {self._batches_per_epoch}: regenerate one of them"
            )
        batch, dtype, coords = self._parse(place)
        if (dtype, coords) != (self._stored_dtype, self._stored_coords):
            raise BadLabels(
                f"{name}: labels {dtype}, coords {coords}, but in the first batch {self._stored_dtype}, {self._stored_coords}: regenerate "
                "one of them"
            )
        return (batch if self._order is None else replace(batch, image=self._images(place, len(batch)))), name

    def _images(self, place: Place, records: int) -> Indices:
        assert self._order is not None
        order = self._order.get(place.epoch)
        start = sum(len(items[5]) for items in self._epoch(place.epoch)[: place.batch])
        if order is None or start + records > len(order):
            count = "no images" if order is None else f"{len(order)} images"
            raise BadLabels(f"{self.path / ORDER_FILE}: has {count} for epoch {place.epoch}, whose file has more labels")
        return order[start : start + records]


class HaldWriter(LabelWriter):
    """The files; the batches of an epoch are in memory until it is complete.

    Raises:
        UsageError: the labels are not HALD's, or record no images (in the constructor); a batch is not the next one of
            its epoch (in `add`).
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        refuse_form("hald", form)
        require_images("hald", about)
        if about.layout != "hald" or about.domain != "probs":
            raise UsageError(
                f"hald stores probabilities at the students' temperature, but these labels are {about.domain} of the layout {about.layout}: "
                "write sre2l, lpld or .npy"
            )
        self._out, self._about = out, about
        self._coords = "float16" if about.details.get("coords") == "float16" else "float32"
        self._epoch: int | None = None
        self._batches: list[list[Any]] = []
        self._order: dict[str, list[int]] = {}
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        refuse_columns(batch, "hald", ())
        epoch, number = batch.place
        if epoch != self._epoch:
            self._write_epoch()
            self._epoch, self._batches = epoch, []
        if number != len(self._batches) or (not number and str(epoch) in self._order):
            raise UsageError(
                f"hald stores all batches of an epoch in order, but batch {number} of epoch {epoch} comes after {len(self._batches)} others"
            )
        assert batch.image is not None
        coords, *items = six_items(batch, self._about)
        self._batches.append([None if coords is None else to_tensor(coords.numpy(), self._coords), *items])
        self._order.setdefault(str(epoch), []).extend(batch.image.tolist())

    def finish(self) -> None:
        self._write_epoch()
        write_items(self.counted(self._out / ORDER_FILE), self._order)

    def _write_epoch(self) -> None:
        if self._epoch is not None:
            write_items(self.counted(self._out / f"epoch_{self._epoch}.tar"), self._batches)


def _is_batch(items: Any) -> bool:
    return isinstance(items, list) and len(items) == 6 and len(getattr(items[5], "shape", ())) == 2


def find_epochs(path: Path) -> dict[int, Path]:
    """Every epoch_E.tar in `path`, in numeric order.

    Raises:
        BadLabels: two files have the same number, such as epoch_0 and epoch_00.
    """
    matches = [(re.fullmatch(EPOCH_FILE, file.name), file) for file in (path.iterdir() if path.is_dir() else ())]
    epochs: dict[int, Path] = {}
    for match, file in matches:
        if match:
            same = epochs.setdefault(int(match[1]), file)
            if same != file:
                raise BadLabels(f"{file}: is the same epoch as {same}; remove one of them")
    return dict(sorted(epochs.items()))


def read_order(file: Path) -> dict[int, Indices]:
    """The images of the records of every epoch.

    Raises:
        BadLabels: the file is something else, or has an epoch twice.
    """
    saved = unpickle(file)
    try:
        order = {int(epoch): check_indices(np.asarray(to_plain(file, 0, ids))) for epoch, ids in saved.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadLabels(f"{file}: not an order file ({error}); it must map epochs to lists of image indices") from None
    if len(order) < len(saved):
        raise BadLabels(f"{file}: has two orders for an epoch; remove one of them")
    return order


def teacher_temperature(path: Path) -> float | None:
    """The temperature T in a folder's name (slcT); None if there is none."""
    match = re.search(r"_slc(\d{1,6}(?:\.\d{1,6})?)(?:_|$)", path.resolve().name)
    return None if match is None else float(match[1])


def _temperature_note(temperature: float | None) -> str:
    known = temperature is not None
    stated = (
        f"T = {temperature:g} (slc{temperature:g} in the folder's name)"
        if known
        else "an unknown temperature T (the folder's name has no slcT)"
    )
    return (
        f"labels are read as the teacher's probabilities at {stated} and are kept as they are: students must compare them with "
        f"softmax(logits / {f'{temperature:g}' if known else 'T'}), and must not divide them by a temperature again"
    )


LAYOUT = Layout(
    source=HaldSource,
    writer=HaldWriter,
    detect=lambda path: "hald" if find_epochs(path) else None,
    entries=rf"{EPOCH_FILE}|{re.escape(ORDER_FILE)}",
)
