"""Records -> codes -> bytes -> `.vql`: one pass over the dump, memory bounded by a batch."""

import hashlib
import itertools
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vqlabel
from vqlabel.bitstream import Coding, split_ragged
from vqlabel.codecs import LabelCodec, load_codec
from vqlabel.codecs.fitted_on import FittedOn, digest_of
from vqlabel.codecs.vqae.sizing import CHUNK_CODES
from vqlabel.config import PriorConfig
from vqlabel.container import ContainerWriter, canonical
from vqlabel.errors import UsageError
from vqlabel.labels import Context, LabelBatch, LabelSource, open_labels
from vqlabel.labels.domain import FlatRows
from vqlabel.labels.image_set import ImageSet, WholeEpochs
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.threads import worker_count
from vqlabel.type_checks import check_argument_types
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.columns import ColumnWriter, Spool
from vqlabel.vql.file import CODEC, NO_CODES, SIGMOID_LABELS, VqlFile
from vqlabel.vql.ragged_codes import CODES, COUNTS, VARIABLE_SLOTS
from vqlabel.vql.seeded import NEVER_DRAWN, SEEDED_VIEWS, VIEW_COLUMNS, check_drawn, known_views, write_drawn

ENCODE_RECORDS, ENCODE_BYTES = 2048, 32 << 20  # labels encoded at a time
SWITCH_SECONDS = 1e-4  # unpickling holds the interpreter; at Python's 5 ms every operation of the encoders would wait for it
Codes = NDArray[np.unsignedinteger]  # [n, m]
_NUMPY = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}


@check_argument_types
def pack(
    dump: str | PathLike[str] | LabelSource,
    out: str | PathLike[str],
    *,
    codec: LabelCodec | str | PathLike[str],
    effort: str = "normal",
    drawn: DrawnColumns | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode a dump into a `.vql` file.

    Args:
        dump: a path for `open_labels`, or a source.
        codec: a fitted codec (`fit`, `load_codec`), or the path of its file.
        effort: "fast", "normal" or "best": how hard the best codes of a label are looked for (`vqae.SWEEPS`, `vqae.BEAM`).
        drawn: how the views were drawn (`seeded.read_recipe`): its seed is stored in the place of their augmentation, after every batch was
            compared with what it draws.

    Returns:
        records, classes, epochs, bytes, and code_bits per label before any coding: where their number differs, of the mean label, its count as
        it is stored included; stored_code_bits, what they weigh in the file; augmentation_bits per label of augmentation and order: `stored`,
        what they weigh in the file, and with `drawn` about what they would weigh `if_kept`; empty where the dump has neither; `notes`, where
        something about the codec cannot be told, or rows are no labels.

    Raises:
        UsageError: the codec is for another number of classes, domain or type, or its prior for other images or views; or `out` is no
            place for a .vql file (`storage.targets.AtomicTarget`, `storage.apart.check_apart`).
        BadLabels: the dump is malformed, or changed while it was read; nothing is written.
        TargetExists: `out` is there and `overwrite` is false.
    """
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs, beside=() if isinstance(codec, LabelCodec) else (codec,))
    codec = codec if isinstance(codec, LabelCodec) else load_codec(codec)[0]
    check_codec(codec, source)
    if drawn is not None:
        check_recipe(source, drawn)
    about = describe_fit(source)
    notes = check_fitted_on(codec, about, source.path)
    prior: PriorConfig | None = getattr(codec.config, "prior", None)
    edges = list[int]()
    other = prior is not None and about.view is None and about.first_sha256 != codec.fitted_on.first_sha256
    fingerprint, whole, flat = hashlib.sha256(), WholeEpochs(), FlatRows(path=source.path)
    with lent(codec, effort, device), ContainerWriter(out, overwrite=overwrite) as writer:
        columns = ColumnWriter(writer.path.parent, source.order)

        def parts(encoded: Iterable[tuple[int, list[LabelBatch], Codes]]) -> Iterator[Codes]:
            for done, batches, codes in encoded:
                for batch in batches:
                    columns.add(batch)
                    flat.add(batch.labels)
                    if batch.image is not None:
                        whole.add(batch.place.epoch, batch.image)
                    if other and batch.mix_box is not None:
                        edges.append(max(batch.mix_box))
                    if drawn is not None:
                        check_drawn(batch, drawn, _number_of(batch, drawn, source), source.path)
                    fingerprint.update(batch.label_bytes())
                yield codes
                progress("packing", done, len(source), {})

        with closing(_encoded(source, codec, device)) as encoded:  # its workers are done before the codec goes back
            records = store_codes(writer, codec, parts(encoded))
        source.check_unchanged()
        flat.check()
        kept = 0 if drawn is None else columns.bits()
        says = columns.write(writer, source.names) if drawn is None else write_drawn(writer, drawn, source.places)
        if prior is not None and edges:
            codec.fitted_on.refuse_edge(max(edges), len(edges), prior, source.path)
        images = _images_of(source, about.images, whole.images() if drawn is None else drawn.recipe.images)
        size = finish(writer, codec, source, says, {"labels_sha256": fingerprint.hexdigest()}, images)
    file = VqlFile(writer.path)
    bits = file.label_bits
    stored = 8 * sum(one.stop - one.start for name, one in file.container.sections.items() if name.startswith(PREFIX))
    prices: dict[str, float] = {"stored": stored} if drawn is None else {"stored": stored, "if_kept": kept}
    if {name for name in file.container.streams if name.startswith(PREFIX)} == {PREFIX + "batch"}:
        prices = {}  # the dump has neither
    codes = sum(file.container.stored(name) for name in (CODES, COUNTS) if name in file.container.streams)
    return {
        "path": str(writer.path),
        "records": records,
        "classes": source.classes,
        "epochs": len({place.epoch for place in source.places}),
        "bytes": size,
        "code_bits": bits,
        "stored_code_bits": round(8 * codes / max(1, records), 4),
        "augmentation_bits": {name: round(count / max(1, records), 3) for name, count in prices.items()},
        **noted([*notes, *flat.notes()]),
    }


def _images_of(source: LabelSource, known: ImageSet | None, implied: int | None) -> ImageSet | None:
    """Which images the labels are of, by what is known of them and by the number that whole epochs imply.

    Raises:
        UsageError: these contradict each other.
    """
    if known is not None and implied not in (None, known.count):
        raise UsageError(
            f"{source.path}: every epoch shows {implied} images, and those that were named are {known.count}: name the images that were labelled"
        )
    return ImageSet(count=implied) if known is None and implied is not None else known


def check_recipe(source: LabelSource, drawn: DrawnColumns) -> None:
    """Refuse a recipe that is not this dump's before anything is fitted to it, as far as its first batch tells.

    Raises:
        UsageError: single views were pruned out of batches, which a recipe draws as a whole.
        BadLabels: the dump's views are not those of the recipe.
    """
    if source.details.get("pruned", {}).get("by") == "view":
        raise UsageError(
            f"{source.path}: single views were dropped, and a recipe draws whole batches; use --by batch, or --augmentation keep"
        )
    if len(source):
        batch = source.read(0)
        check_drawn(batch, drawn, _number_of(batch, drawn, source), source.path)


def _number_of(batch: LabelBatch, drawn: DrawnColumns, source: LabelSource) -> int:
    """Of a batch among those that a recipe draws."""
    at = batch.place.epoch * drawn.recipe.batches + batch.place.batch
    if not (0 <= at < len(drawn.places) and drawn.places[at] == batch.place):
        raise UsageError(
            f"{source.path}: batch {batch.place.batch} of epoch {batch.place.epoch} is none of its recipe's; pack with --augmentation keep"
        )
    return at


def store_codes(writer: ContainerWriter, codec: LabelCodec, parts: Iterable[Codes]) -> int:
    """Write the codes of all records, [n, m] at a time. Returns the number of records."""
    store = _Counted(writer, codec.code_bits) if codec.counted else _Plain(writer, codec.code_bits, codec.codings)
    for codes in parts:
        store.append(codes)
    return store.end()


def finish(
    writer: ContainerWriter,
    codec: LabelCodec,
    source: LabelSource,
    says: dict[str, Any],
    more: dict[str, Any],
    images: ImageSet | None = None,
) -> int:
    """Write the decoder and the header, after codes and columns. Returns the size of the file.

    Args:
        says: of the columns, for `vql.columns`.
        more: for `vql.source`, besides what the dump says of itself.
        images: which images the labels are of, where that is known.
    """
    for name, tensor in codec.decoder_tensors().items():
        writer.tensor(CODEC + name, _NUMPY[tensor.dtype], tensor.numpy())
    return writer.finish(
        {
            "vql.label": canonical(describe_label(codec, source)),
            "vql.codec": canonical({"kind": codec.kind, "config": codec.config.to_dict()}),
            "vql.columns": canonical(says),
            "vql.source": canonical({**describe_source(source), **more}),
            "vql.writer": f"vqlabel {vqlabel.__version__}",
            **({} if images is None else {"vql.images": canonical(images.to_dict())}),
        },
        [VARIABLE_SLOTS] * codec.counted
        + [SEEDED_VIEWS] * (says["order"] == "seeded")
        + [SIGMOID_LABELS] * (source.domain == "sigmoid")
        + [VIEW_COLUMNS] * any(PREFIX + name in writer.streams for name in NEVER_DRAWN),
    )


class _Plain:
    """Codes -> their stream."""

    def __init__(self, writer: ContainerWriter, bits: list[int], codings: tuple[Coding, ...]) -> None:
        self._writer, self._none = writer, not bits
        if bits:
            writer.begin(CODES, bits, codings)
        else:
            writer.begin(CODES, NO_CODES, chunk_rows=CHUNK_CODES)

    def append(self, codes: NDArray[np.unsignedinteger]) -> None:
        """[n, m]."""
        self._writer.append(np.zeros((len(codes), 1), np.uint32) if self._none else codes)

    def end(self) -> int:
        """Returns the number of records."""
        return self._writer.end().rows


class _Counted:
    """Codes of labels that have different numbers of them -> their stream, and the stream of counts, which waits in a file meanwhile."""

    def __init__(self, writer: ContainerWriter, bits: list[int]) -> None:
        self._writer, self._bits = writer, bits
        self._counts = Spool(writer.path.parent, 1)
        writer.begin(CODES, bits[1:2], chunk_rows=CHUNK_CODES)

    def append(self, codes: NDArray[np.unsignedinteger]) -> None:
        """[n, 1 + m]."""
        counts, run = split_ragged(codes)
        self._counts.add(counts)
        self._writer.append(run)

    def end(self) -> int:
        """Returns the number of records."""
        self._writer.end()
        self._writer.begin(COUNTS, self._bits[:1])
        for counts in self._counts:
            self._writer.append(counts)
        return self._writer.end().rows


@contextmanager
def lent(codec: LabelCodec, effort: str, device: str) -> Iterator[None]:
    """The codec on `device`, with `effort`; it is its owner's, so it goes back as it came."""
    before, weight = codec.effort, next(itertools.chain(codec.parameters(), codec.buffers()), None)
    home = "cpu" if weight is None else weight.device
    try:
        codec.set_effort(effort)
        codec.to(device)
        yield
    finally:
        codec.set_effort(before)
        if weight is not None:
            codec.to(home)


def check_codec(codec: LabelCodec, source: LabelSource) -> None:
    """Raises UsageError unless `codec` was fitted for labels such as `source` has."""
    config = codec.config
    if config.classes != source.classes:
        raise UsageError(
            f"{source.path} has {source.classes} classes, the codec was fitted for {config.classes}; fit one on this dump"
        )
    if config.domain != source.domain:
        raise UsageError(f"{source.path} holds {source.domain}, the codec was fitted for {config.domain}; fit one on this dump")
    if codec.kind == "raw" and config.dtype != source.dtype:
        raise UsageError(f"{source.path} is {source.dtype}, the raw codec {config.dtype}; fit raw on this dump (it takes no time)")


def describe_fit(source: LabelSource) -> FittedOn:
    """What is known of a dump's labels, by which others are told from them."""
    images, view = known_views(source)
    return FittedOn(images=images, view=view, first_sha256=digest_of(source.read(0)) if len(source) else None)


def check_fitted_on(codec: LabelCodec, found: FittedOn, where: Path) -> list[str]:
    """Refuse a codec whose prior was fitted on other images, or views of another size, than the labels are of.

    Returns:
        Sentences on what cannot be told.

    Raises:
        UsageError: it was; names both sides.
    """
    prior = getattr(codec.config, "prior", None)
    return [] if prior is None else codec.fitted_on.refuse_others(found, prior, where)


def describe_label(codec: LabelCodec, source: LabelSource) -> dict[str, Any]:
    """What `vql.label` says. The level of logits, which MSE students need and KL students never see, only `raw` keeps; sigmoid labels have it."""
    kept = codec.kind == "raw" or source.domain == "sigmoid"
    said = {"classes": source.classes, "domain": source.domain, "dtype": source.dtype, "shift_preserved": kept}
    return said if source.support is None else {**said, "support": {"k": source.support.k, "rest": source.support.rest}}


def describe_source(source: LabelSource) -> dict[str, Any]:
    """What `vql.source` says besides a fingerprint."""
    said = {"layout": source.layout, "temperature": source.temperature, "details": dict(source.details)}
    return {name: value for name, value in said.items() if value}


def _encoded(
    source: LabelSource, codec: LabelCodec, device: str
) -> Generator[tuple[int, list[LabelBatch], NDArray[np.unsignedinteger]], None, None]:
    """(batches read so far, the next batches of about ENCODE_RECORDS records, their codes), in order.

    On a CPU every worker encodes a group of its own with one thread: threads that share an operation wait for each other at its end,
    and for the reader too. So does the reader, whose second thread would spin on a worker's core.
    """
    workers = worker_count() if device == "cpu" else 1
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)
    waiting: deque[tuple[int, list[LabelBatch], Future[NDArray[np.unsignedinteger]]]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done, batches in _grouped(source):
                waiting.append((done, batches, pool.submit(encode, codec, batches, device)))
                while len(waiting) > workers + 1:
                    at, group, codes = waiting.popleft()
                    yield at, group, codes.result()
            while waiting:
                at, group, codes = waiting.popleft()
                yield at, group, codes.result()
        finally:
            sys.setswitchinterval(interval)
            torch.set_num_threads(threads)
            for _, _, unfinished in waiting:
                unfinished.cancel()


def _grouped(source: LabelSource) -> Iterator[tuple[int, list[LabelBatch]]]:
    most = max(1, min(ENCODE_RECORDS, ENCODE_BYTES // (4 * source.classes)))
    group: list[LabelBatch] = []
    for at, batch in enumerate(source):
        group.append(batch)
        if sum(map(len, group)) >= most or at + 1 == len(source):
            yield at + 1, group
            group = []


def encode(codec: LabelCodec, batches: list[LabelBatch], device: str) -> Codes:
    """[n, m] uint32 codes of the records of some batches."""
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).to(device)
    context = join_contexts([batch.context() for batch in batches]) if codec.uses_context else None
    return codec.encode(labels, context).cpu().numpy().view(np.uint32)


def join_contexts(parts: list[Context]) -> Context:
    """The contexts of several batches as one; a field is there if every part has it."""

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    return Context(**{field.name: join(field.name) for field in fields(Context)})
