"""HALD's files, one an epoch <-> label batches.

epoch_E.tar                torch.save list of all batches of an epoch, each SRe2L's list of 6 (labels/sre2l.py) with coords f16 or f32, boxes of
                           NumPy's integers, and in place of logits probabilities f16 or f32 [b, C]
sampler_indices_dict.pt    torch.save dict {"0": [image index of every record of epoch 0, in order], ...}

The probabilities are the teacher's at the temperature of the students, softmax(logits / T); the folder's name states it: FKD_..._slc20_... is
T = 20. Students compare them with softmax(logits / T) as they are, so here they are probabilities like any others, at temperature 1.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.sre2l import ITEMS, parse_six, refuse_columns, refuse_form, require_images, six_items
from vqlabel.labels.layouts.torch_items import describe, narrowed, plain, to_tensor, write_items
from vqlabel.labels.layouts.tree import Indices, indices, missing
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter, Place

ORDER_FILE = "sampler_indices_dict.pt"
FILE = r"epoch_(\d{1,9})\.tar"


class HaldSource(LabelSource):
    """A folder of such files; one epoch is in memory. Every epoch has as many batches as the first."""

    layout, temperature = "hald", 1.0

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path, self.domain = path, domain or "probs"
        self._files = find_epochs(path)
        if not self._files:
            raise BadLabels(f"{path}: no epoch_E.tar in it; HALD's dump has one for every epoch")
        file = path / ORDER_FILE
        self._order = read_order(file) if file.exists() else None
        self.order = "none" if self._order is None else "explicit"
        self._held: tuple[int, list[Any]] = -1, []
        epoch = next(iter(self._files))
        self._each = len(self._epoch(epoch))
        self.places = [Place(at, batch) for at in self._files for batch in range(self._each)]
        first, self._stored, coords = self._parse(Place(epoch, 0))
        self.dtype, self.classes = narrowed(self, self._stored), first.labels.shape[1]
        degree = teacher_temperature(path)
        self.details = {"coords": coords, "teacher_temperature": degree}
        self.notes += missing(path, [Place(at, 0) for at in self._files])
        if self.domain == "probs":
            self.notes.append(f"{path}: {_how_read(degree)}")

    def _epoch(self, epoch: int) -> list[Any]:
        """The batches of an epoch, each a list of 6."""
        if self._held[0] != epoch:
            batches = unpickle(self._files[epoch])
            if not isinstance(batches, list) or not batches or not all(map(_is_batch, batches)):
                raise BadLabels(
                    f"{self._files[epoch]}: holds {describe(batches)}; HALD's epoch is a list of batches, each a list of 6 ({ITEMS})"
                )
            self._held = epoch, batches
        return self._held[1]

    def _parse(self, place: Place) -> tuple[LabelBatch, str, str]:
        """A batch without its images, and the types of its labels and coords."""
        file = self._files[place.epoch]
        items = [plain(file, number, item) for number, item in enumerate(self._epoch(place.epoch)[place.batch])]
        coords = str(getattr(items[0], "dtype", "torch.float32")).removeprefix("torch.")
        if coords == "float16":
            items[0] = items[0].float()
        return *parse_six(file, place, items), coords

    def files_of(self, at: int) -> tuple[Path, ...]:
        return (self._files[self.places[at].epoch],)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        place = self.places[at]
        file, batches = self._files[place.epoch], self._epoch(place.epoch)
        name = f"{file}, batch {place.batch}"
        if len(batches) != self._each:
            raise BadLabels(f"{file}: has {len(batches)} batches; the first epoch has {self._each}: regenerate one of them")
        batch, stored, coords = self._parse(place)
        if (stored, coords) != (self._stored, self.details["coords"]):
            raise BadLabels(
                f"{name}: labels {stored}, coords {coords}; the dump began with {self._stored}, {self.details['coords']}: regenerate one of them"
            )
        return (batch if self._order is None else replace(batch, image=self._images(place, len(batch)))), name

    def _images(self, place: Place, records: int) -> Indices:
        assert self._order is not None
        order = self._order.get(place.epoch)
        start = sum(len(items[5]) for items in self._epoch(place.epoch)[: place.batch])
        if order is None or start + records > len(order):
            has = "no images" if order is None else f"{len(order)} images"
            raise BadLabels(f"{self.path / ORDER_FILE}: has {has} for epoch {place.epoch}, whose file has more labels")
        return order[start : start + records]


class HaldWriter(LabelWriter):
    """The files; a batch is in memory until its epoch is over."""

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        refuse_form("hald", form)
        require_images("hald", about)
        if about.layout != "hald" or about.domain != "probs":
            raise UsageError(
                f"hald holds probabilities at the temperature of its students, and these are {about.domain} of another layout: write sre2l, lpld or .npy"
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
            self._write()
            self._epoch, self._batches = epoch, []
        if number != len(self._batches) or (not number and str(epoch) in self._order):
            raise UsageError(
                f"hald has all batches of an epoch in order, and batch {number} of epoch {epoch} comes after {len(self._batches)} others"
            )
        assert batch.image is not None
        coords, *items = six_items(batch, self._about)
        self._batches.append([None if coords is None else to_tensor(coords.numpy(), self._coords), *items])
        self._order.setdefault(str(epoch), []).extend(batch.image.tolist())

    def finish(self) -> None:
        self._write()
        write_items(self.counted(self._out / ORDER_FILE), self._order)

    def _write(self) -> None:
        if self._epoch is not None:
            write_items(self.counted(self._out / f"epoch_{self._epoch}.tar"), self._batches)


def _is_batch(items: Any) -> bool:
    return isinstance(items, list) and len(items) == 6 and len(getattr(items[5], "shape", ())) == 2


def find_epochs(path: Path) -> dict[int, Path]:
    """Every epoch_E.tar in `path`, in numeric order."""
    named = [(re.fullmatch(FILE, file.name), file) for file in (path.iterdir() if path.is_dir() else ())]
    found: dict[int, Path] = {}
    for name, file in named:
        if name:
            twin = found.setdefault(int(name[1]), file)
            if twin != file:
                raise BadLabels(f"{file}: is the same epoch as {twin}; remove one of them")
    return dict(sorted(found.items()))


def read_order(file: Path) -> dict[int, Indices]:
    """Which images the records of every epoch are of.

    Raises:
        BadLabels: it is something else.
    """
    found = unpickle(file)
    try:
        order = {int(epoch): indices(np.asarray(plain(file, 0, ids))) for epoch, ids in found.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadLabels(f"{file}: not an order file ({error}); it maps epochs to lists of image indices") from None
    if len(order) < len(found):
        raise BadLabels(f"{file}: names an epoch twice, with an order each; remove one of them")
    return order


def teacher_temperature(path: Path) -> float | None:
    """The T that a folder's name states."""
    named = re.search(r"_slc(\d{1,6}(?:\.\d{1,6})?)(?:_|$)", path.resolve().name)
    return None if named is None else float(named[1])


def _how_read(degree: float | None) -> str:
    at = (
        "a temperature that the folder's name does not state"
        if degree is None
        else f"T = {degree:g} (slc{degree:g} in the folder's name)"
    )
    return (
        f"labels are read as the teacher's probabilities at {at} and kept as such: students compare them with "
        f"softmax(logits / {'T' if degree is None else f'{degree:g}'}), and divide by no temperature again"
    )
