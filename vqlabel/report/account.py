"""A `.vql` -> where every byte went: rows that add up to the file's size, and bits per label from them. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vqlabel.config import VqaeConfig
from vqlabel.container.layout import CHUNKS, SEAL
from vqlabel.errors import BadContainer
from vqlabel.metrics.code_usage import CodeUsage
from vqlabel.report.published import break_even
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import COLUMNS, IMAGES_MOST, PREFIX
from vqlabel.vql.file import CODEC, VqlFile
from vqlabel.vql.ragged_codes import CODES, COUNTS

VIEWS = 300  # views per image of the published settings (SRe2L, LPLD, LPQLD, CDA: 300 epochs)
ORDER = ("image", "batch", "drawn", "names")  # columns that say which image a record belongs to; the others are augmentation
GROUPS = ("codes", "codec", "augmentation", "order", "container")
USAGE_RECORDS = IMAGE_RECORDS = 65_536
FIXED = "fixed"
PER_LABEL = "per label"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A part of the file. `grows` is "per label" where it grows with the labels, "fixed" where it does not."""

    part: str
    group: str  # one of GROUPS
    bytes: int
    grows: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """Every byte of one `.vql`."""

    path: str
    records: int
    classes: int
    images: int | None  # None: the file does not say which image a label belongs to
    kind: str  # of the codec
    dtype: str  # of the labels: f16, bf16 or f32
    code_bits: float  # per label, before any coding; of variable labels the mean, counts as they are stored
    rows: tuple[Row, ...]
    perplexity: tuple[float, ...] | None
    codebook_size: int | None
    kept: float | None  # share of a dump that the file has, where it was pruned

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes by group, and their total: the file's size."""
        sums = {group: sum(row.bytes for row in self.rows if row.group == group) for group in GROUPS}
        return {**sums, "total": sum(sums.values())}

    def bits_per_label(self) -> dict[str, float]:
        """codes: the index bitstream. labels: all but augmentation and order. all_in: the whole file."""
        size = self.bytes
        labels = size["codes"] + size["codec"] + size["container"]
        each = 8 / max(1, self.records)
        return {"codes": size["codes"] * each, "labels": labels * each, "all_in": size["total"] * each}

    def bits_per_label_at(self, views: int = VIEWS) -> dict[str, float] | None:
        """`labels` and `all_in` as they would be with `views` labels of each image: parts that do not grow are shared by more."""
        if self.images is None or not self.records:
            return None
        many = self.images * views

        def at(groups: tuple[str, ...]) -> float:
            rows = [row for row in self.rows if row.group in groups]
            fixed = sum(row.bytes for row in rows if row.grows == FIXED)
            return 8 * (fixed / many + (sum(row.bytes for row in rows) - fixed) / self.records)

        return {"labels": at(("codes", "codec", "container")), "all_in": at(GROUPS)}

    def ratio_to_fp16(self) -> dict[str, float]:
        """How many times smaller than C fp16 numbers per label, nothing else counted there."""
        return {name: 16 * self.classes / bits for name, bits in self.bits_per_label().items() if bits and name != "codes"}

    def teacher(self, teacher_bytes: int) -> dict[str, Any]:
        """Should the teacher be shipped instead? The number of labels from which on it is smaller than their file."""
        fixed = sum(row.bytes for row in self.rows if row.grows == FIXED)
        growing = 8 * (self.bytes["total"] - fixed) / max(1, self.records)
        labels = break_even(teacher_bytes, growing, fixed) if growing else 0
        return {
            "teacher_bytes": teacher_bytes,
            "break_even_labels": labels,
            "smaller": "labels" if self.bytes["total"] <= teacher_bytes else "teacher",
        }

    def to_dict(self, teacher_bytes: int | None = None) -> dict[str, Any]:
        """Everything as JSON takes it."""
        found: dict[str, Any] = {
            "path": self.path,
            "records": self.records,
            "classes": self.classes,
            "dtype": self.dtype,
            "images": self.images,
            "codec": self.kind,
            "code_bits": self.code_bits,
            "bytes": self.bytes,
            "bits_per_label": self.bits_per_label(),
            f"bits_per_label_at_{VIEWS}_views": self.bits_per_label_at(),
            "ratio_to_fp16": self.ratio_to_fp16(),
            "rows": [asdict(row) for row in self.rows],
            "perplexity": None if self.perplexity is None else list(self.perplexity),
            "codebook_size": self.codebook_size,
        }
        if self.kept is not None:  # what LPLD and LPQLD report: bytes of the file by the labels that there were before
            bits = self.bits_per_label()
            found["pruned"] = {"kept": self.kept, "bits_per_label_before": {name: each * self.kept for name, each in bits.items()}}
        if teacher_bytes is not None:
            found["teacher"] = self.teacher(teacher_bytes)
        return found


def account(file: VqlFile) -> Account:
    """Account for every byte of an opened `.vql`.

    Raises:
        BadContainer: a chunk that had to be read is damaged.
    """
    kind, config = file.codec["kind"], file.codec["config"]
    rows = list(_payloads(file))
    box = file.container
    streams = [name for name in (CODES, COUNTS) if name in box.streams]
    tables = sum(_size(file, name + CHUNKS) for name in streams)
    padding = sum(_size(file, name) - box.stored(name) for name in streams)
    used = 8 + len(box.header_text)
    rows += [
        Row(part="chunk tables", group="container", bytes=tables, grows=PER_LABEL),
        Row(part="header and seal", group="container", bytes=used + 32, grows=FIXED),
        Row(part="padding", group="container", bytes=box.header_area - used + padding, grows=FIXED),
    ]
    usage = _usage(file) if kind == "vqae" and file.records else None
    return Account(
        path=str(box.path),
        records=file.records,
        classes=file.classes,
        images=_images(file),
        kind=kind,
        dtype=str(file.label["dtype"]).lower(),
        code_bits=file.label_bits,
        rows=tuple(rows),
        perplexity=None if usage is None else tuple(round(float(p), 1) for p in usage.perplexity()),
        codebook_size=config.get("codebook_size"),
        kept=None if file.pruned is None else file.pruned["keep"],
    )


def _images(file: VqlFile) -> int | None:
    """How many images the labels are of."""
    if isinstance(file.columns, DrawnColumns):
        return file.columns.recipe.images  # an epoch shows each of them
    seen = np.zeros(IMAGES_MOST, bool)
    for at in range(0, file.records, IMAGE_RECORDS):
        image = file.columns.image(np.arange(at, min(at + IMAGE_RECORDS, file.records)))
        if image is None:
            return None
        if int(image.max()) >= IMAGES_MOST:
            raise BadContainer(
                f"{file.container.path}: a label of image {int(image.max())}; the format allows {IMAGES_MOST} images"
            )
        seen[image] = True
    return int(seen.sum())


def _payloads(file: VqlFile) -> list[Row]:
    """Codes and codec tensors without padding; columns with their padding and chunk tables, which a file without them would not have."""
    rows, codec, streams = [], {"codebook": 0, "decoder": 0}, file.container.streams
    for name, section in file.container.sections.items():
        size, stream = section.stop - section.start, name.removesuffix(CHUNKS)
        part = stream.removeprefix(PREFIX)
        if stream in (CODES, COUNTS) and stream in streams:
            if name == stream:
                rows.append(Row(part=name, group="codes", bytes=file.container.stored(name), grows=PER_LABEL))
        elif name.startswith(CODEC):
            part = "codebook" if ".codebook" in name else "image vectors" if ".prior.images" in name else "decoder"
            codec[part] = codec.get(part, 0) + size
        elif stream == PREFIX + part and part in COLUMNS and stream in streams:
            if name == stream:
                grows = FIXED if part in ("image_size", "names") else PER_LABEL
                size += _size(file, name + CHUNKS)
                rows.append(Row(part=part, group="order" if part in ORDER else "augmentation", bytes=size, grows=grows))
        elif name != SEAL:  # of a later minor version
            rows.append(Row(part=name, group="container", bytes=size, grows=FIXED))
    rows += [Row(part=part, group="codec", bytes=size, grows=FIXED) for part, size in codec.items()]
    return sorted(rows, key=lambda row: (GROUPS.index(row.group), row.part))


def _size(file: VqlFile, name: str) -> int:
    section = file.container.sections[name]
    return section.stop - section.start


def _usage(file: VqlFile) -> CodeUsage:
    """Of the first 65,536 records, so that a large file is accounted for as soon as a small one."""
    config = file.config
    assert isinstance(config, VqaeConfig)
    slots, k = config.slots, config.codebook_size
    book = file.container.sections.get(CODEC + "decoder.codebook")
    if slots and (book is None or 8 * (book.stop - book.start) < slots * k):  # a code is a bit or more of it
        raise BadContainer(f"{file.container.path}: its codebook is too small for {slots} slots of {k} codes; damaged or forged")
    usage = CodeUsage(slots, k)
    last = min(file.records, USAGE_RECORDS)
    for at in range(0, last, 4096):
        codes, counted = file.codes(at, min(at + 4096, last)), int(file.counted)
        usage.add(codes[:, counted : counted + slots], codes[:, 0] if counted else None)
    return usage
