"""A `.vql` -> where its bytes go: rows that sum to the file's size, and bits per label from them. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vqlabel.codecs.config import CODES, COUNTS
from vqlabel.container.layout import CHUNKS, SEAL
from vqlabel.errors import BadContainer
from vqlabel.labels.schema import COLUMNS, MAX_IMAGES
from vqlabel.metrics.code_usage import CodeUsage
from vqlabel.report.published import break_even
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.file import CODEC, VqlFile

VIEWS = 300  # views per image in the published settings (SRe2L, LPLD, LPQLD, CDA: 300 epochs)
GROUPS = ("codes", "codec", "augmentation", "order", "container")
ORDER_COLUMNS = ("image", "batch", "drawn", "names")  # record the image of a label; all other columns are augmentation
FIXED_COLUMNS = ("image_size", "names")  # have a row per image, not per label
FIXED, PER_LABEL = "fixed", "per label"
USAGE_RECORDS = 65_536  # whose codes are counted for the perplexity, so that its time does not grow with the file
CODES_STEP = 4096  # records whose codes are read at a time
IMAGES_STEP = 65_536  # records whose images are read at a time
LENGTH_BYTES, SEAL_BYTES = 8, 32  # the header's length in front of it; the seal, a sha256 (docs/format.md)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A part of the file. `grows` is "per label" for a part whose size grows with the labels, else "fixed"."""

    part: str
    group: str  # one of GROUPS
    bytes: int
    grows: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """All bytes of one `.vql`, by part."""

    path: str
    records: int
    classes: int
    images: int | None  # number of images that have labels; None: the file does not record images
    kind: str  # of the codec
    dtype: str  # of the labels: f16, bf16 or f32
    code_bits: float  # per label, before entropy coding; at a variable rate the mean, counts included
    rows: tuple[Row, ...]
    perplexity: tuple[float, ...] | None
    codebook_size: int | None
    kept: float | None  # share of the dump that the file has; None: it was not pruned

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes by group, and their total: the file's size."""
        sums = _sums(self.rows)
        return {**sums, "total": sum(sums.values())}

    def bits_per_label(self) -> dict[str, float]:
        """codes: the code stream. labels: all but augmentation and order. all_in: the whole file."""
        size = self.bytes
        labels = size["codes"] + size["codec"] + size["container"]
        bits_per_byte = 8 / max(1, self.records)  # of a byte of the file, per label
        return {
            "codes": size["codes"] * bits_per_byte,
            "labels": labels * bits_per_byte,
            "all_in": size["total"] * bits_per_byte,
        }

    def bits_per_label_at(self, views: int = VIEWS) -> dict[str, float] | None:
        """`labels` and `all_in` if each image had `views` labels, sharing fixed parts; None if images are unknown."""
        if self.images is None or not self.records:
            return None
        labels = self.images * views

        def bits(groups: tuple[str, ...]) -> float:
            fixed, growing = self._fixed_and_growing(groups)
            return 8 * (fixed / labels + growing / self.records)

        return {"labels": bits(("codes", "codec", "container")), "all_in": bits(GROUPS)}

    def ratio_to_fp16(self) -> dict[str, float]:
        """How many times smaller than C fp16 logits per label, without their augmentation and order."""
        return {name: 16 * self.classes / bits for name, bits in self.bits_per_label().items() if bits and name != "codes"}

    def teacher(self, teacher_bytes: int) -> dict[str, Any]:
        """Compare with shipping the teacher instead: the largest number of labels whose file is no larger."""
        fixed, growing = self._fixed_and_growing(GROUPS)
        bits = 8 * growing / max(1, self.records)
        return {
            "teacher_bytes": teacher_bytes,
            "break_even_labels": break_even(teacher_bytes, bits, fixed) if bits else 0,
            "smaller": "labels" if self.bytes["total"] <= teacher_bytes else "teacher",
        }

    def to_dict(self, teacher_bytes: int | None = None) -> dict[str, Any]:
        """The account as a JSON object."""
        result: dict[str, Any] = {
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
        if self.kept is not None:  # LPLD and LPQLD divide the file's bytes by the labels before pruning
            before = {name: bits * self.kept for name, bits in self.bits_per_label().items()}
            result["pruned"] = {"kept": self.kept, "bits_per_label_before": before}
        if teacher_bytes is not None:
            result["teacher"] = self.teacher(teacher_bytes)
        return result

    def _fixed_and_growing(self, groups: tuple[str, ...]) -> tuple[int, int]:
        """Bytes of these groups that do not grow with the labels, and those that do."""
        rows = [row for row in self.rows if row.group in groups]
        fixed = sum(row.bytes for row in rows if row.grows == FIXED)
        return fixed, sum(row.bytes for row in rows) - fixed


def account(file: VqlFile) -> Account:
    """Account for all bytes of an opened `.vql`.

    Raises:
        BadContainer: a chunk that is read for it is damaged.
    """
    kind, config = file.codec["kind"], file.codec["config"]
    books = file.config.codebooks
    usage = None if books is None or not file.records else _usage(file, *books)
    return Account(
        path=str(file.container.path),
        records=file.records,
        classes=file.classes,
        images=_images(file),
        kind=kind,
        dtype=str(file.label["dtype"]).lower(),
        code_bits=file.label_bits,
        rows=(*_payload_rows(file), *_container_rows(file)),
        perplexity=None if usage is None else tuple(round(float(p), 1) for p in usage.perplexity()),
        codebook_size=config.get("codebook_size"),
        kept=None if file.pruned is None else file.pruned["keep"],
    )


def bytes_by_group(file: VqlFile) -> dict[str, int]:
    """Bytes of an opened `.vql` by group of GROUPS; they sum to the file's size. No code or column is read."""
    return _sums((*_payload_rows(file), *_container_rows(file)))


def _sums(rows: tuple[Row, ...]) -> dict[str, int]:
    return {group: sum(row.bytes for row in rows if row.group == group) for group in GROUPS}


def _images(file: VqlFile) -> int | None:
    """Number of images that have labels."""
    if isinstance(file.columns, DrawnColumns):
        return file.columns.recipe.images  # every epoch has all images
    labelled = np.zeros(MAX_IMAGES, bool)
    for start in range(0, file.records, IMAGES_STEP):
        image = file.columns.image(np.arange(start, min(start + IMAGES_STEP, file.records)))
        if image is None:
            return None
        if int(image.max()) >= MAX_IMAGES:
            raise BadContainer(
                f"{file.container.path}: a label is of image {int(image.max())}; the format allows {MAX_IMAGES} images"
            )
        labelled[image] = True
    return int(labelled.sum())


def _payload_rows(file: VqlFile) -> list[Row]:
    """Codes and codec tensors, without padding; columns, with the padding and chunk tables that belong to them."""
    rows, codec, streams = [], {"codebook": 0, "decoder": 0}, file.container.streams
    for name in file.container.sections:
        stream = name.removesuffix(CHUNKS)
        column = stream.removeprefix(PREFIX)
        if stream in (CODES, COUNTS) and stream in streams:
            if name == stream:
                rows.append(Row(part=name, group="codes", bytes=file.container.stored(name), grows=PER_LABEL))
        elif name.startswith(CODEC):
            part = _codec_part(name)
            codec[part] = codec.get(part, 0) + _size(file, name)
        elif stream == PREFIX + column and column in COLUMNS and stream in streams:
            if name == stream:
                rows.append(_column_row(file, column))
        elif name != SEAL:  # a tensor that a later minor version of the format adds
            rows.append(Row(part=name, group="container", bytes=_size(file, name), grows=FIXED))
    rows += [Row(part=part, group="codec", bytes=size, grows=FIXED) for part, size in codec.items()]
    return sorted(rows, key=lambda row: (GROUPS.index(row.group), row.part))


def _codec_part(tensor: str) -> str:
    return "codebook" if ".codebook" in tensor else "image vectors" if ".prior.images" in tensor else "decoder"


def _column_row(file: VqlFile, column: str) -> Row:
    return Row(
        part=column,
        group="order" if column in ORDER_COLUMNS else "augmentation",
        bytes=_size(file, PREFIX + column) + _size(file, PREFIX + column + CHUNKS),
        grows=FIXED if column in FIXED_COLUMNS else PER_LABEL,
    )


def _container_rows(file: VqlFile) -> list[Row]:
    """Header, seal, padding, and the chunk tables of the codes."""
    container = file.container
    streams = [name for name in (CODES, COUNTS) if name in container.streams]
    tables = sum(_size(file, name + CHUNKS) for name in streams)
    padding = sum(_size(file, name) - container.stored(name) for name in streams)
    header = LENGTH_BYTES + len(container.header_text)
    return [
        Row(part="chunk tables", group="container", bytes=tables, grows=PER_LABEL),
        Row(part="header and seal", group="container", bytes=header + SEAL_BYTES, grows=FIXED),
        Row(part="padding", group="container", bytes=container.header_area - header + padding, grows=FIXED),
    ]


def _size(file: VqlFile, name: str) -> int:
    """Bytes of a tensor."""
    section = file.container.sections[name]
    return section.stop - section.start


def _usage(file: VqlFile, slots: int, codebook_size: int) -> CodeUsage:
    """Histogram of the codes of the first USAGE_RECORDS records."""
    book = file.container.sections.get(CODEC + "decoder.codebook")
    if slots and (book is None or 8 * (book.stop - book.start) < slots * codebook_size):  # a code vector takes a bit at least
        raise BadContainer(
            f"{file.container.path}: its codebook is too small for {slots} slots of {codebook_size} codes; the file is damaged or forged"
        )
    usage = CodeUsage(slots, codebook_size)
    last = min(file.records, USAGE_RECORDS)
    for start in range(0, last, CODES_STEP):
        codes, counted = file.codes(start, min(start + CODES_STEP, last)), int(file.counted)
        usage.add(codes[:, counted : counted + slots], codes[:, 0] if counted else None)
    return usage
