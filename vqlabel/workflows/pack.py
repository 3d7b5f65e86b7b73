"""A dump -> a `.vql`: fit a codec where none is given, encode in one pass, memory bounded by a batch."""

import hashlib
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.codecs import CODECS, LabelCodec, load_codec
from vqlabel.codecs.at_config import at_config
from vqlabel.codecs.config import CODES, COUNTS
from vqlabel.config import FitConfig
from vqlabel.errors import NoSuchFile, UsageError, VqlabelError, require
from vqlabel.labels import LabelBatch, LabelSource, open_labels
from vqlabel.labels.constant_rows import ConstantRows
from vqlabel.labels.image_set import ImageSet, WholeEpochs
from vqlabel.labels.pruning import Pruned
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import VQL
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import check_drawn, drawn_bits, read_recipe, recipe_file
from vqlabel.vql.writer import VqlWriter
from vqlabel.workflows.encode import check_codec, check_fitted_on, codec_on, describe_fit, encoded
from vqlabel.workflows.fit import fit
from vqlabel.workflows.quality import fit_quality


@check_argument_types
def pack(
    dump: str | PathLike[str] | LabelSource,
    out: str | PathLike[str],
    config: FitConfig | None = None,
    *,
    codec: LabelCodec | str | PathLike[str] | None = None,
    effort: str = "normal",
    augmentation: str | DrawnColumns = "keep",
    keep: float | None = None,
    by: str = "epoch",
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode a dump into a `.vql` file, fitting a codec first where none is given: what `vqlabel pack` does.

    Args:
        dump: a path for `open_labels`, or a source.
        config: of the codec to fit, or the rate at which a fitted one is used; its seed chooses what `keep` keeps.
        codec: a fitted codec (`fit`, `load_codec`), or the path of its file; None: one is fitted.
        effort: "fast", "normal" or "best": how hard the search for the best codes of a label is (`vqae.choose.SWEEPS`, `BEAM`).
        augmentation: "keep": as the dump has it; "seeded": by the recipe beside the dump, or by a recipe in memory, whose seed is stored
            in the place of the augmentation, after every batch was compared with what the recipe draws.
        keep: share of the dump to keep, 0 < keep <= 1: label pruning; None: all, and the file records no pruning.
        by: what is kept or dropped as a whole: "epoch", "batch" or "view".

    Returns:
        records, classes, epochs, bytes, and code_bits per label before any coding: where their number differs, of the mean label, its count
        as it is stored included; stored_code_bits, what they take in the file; augmentation_bits per label of augmentation and order:
        `stored`, what they take in the file, with a recipe about what they would take `if_kept`, without one what they would take
        `if_seeded` where a recipe lies beside the dump; empty where the dump has neither; `fit`, see `quality.fit_quality`; `notes`,
        sentences on what a user might not expect.

    Raises:
        UsageError: the codec is for another number of classes, domain or type, or its prior for other images or views; or `out` is no
            place for a .vql file (`targets.check_target`, `targets.check_apart`).
        BadLabels: the dump is malformed, or changed while it was read; nothing is written.
        TargetExists: `out` is there and `overwrite` is false.
    """
    require(
        isinstance(augmentation, DrawnColumns) or augmentation in ("keep", "seeded"),
        "augmentation",
        augmentation,
        "must be keep or seeded",
    )
    config = config or FitConfig()
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    source = source if keep is None else Pruned(source, keep, by, config.seed)
    codec_file = None if codec is None or isinstance(codec, LabelCodec) else Path(codec)
    check_apart(out, *source.inputs, beside=() if codec_file is None else (codec_file,))
    check_target(out, VQL, overwrite=overwrite)
    if isinstance(augmentation, DrawnColumns):
        drawn: DrawnColumns | None = augmentation
    else:
        drawn = read_recipe(recipe_file(source.path)) if augmentation == "seeded" else None
    if drawn is not None:
        check_recipe(source, drawn)
    fitted, report, notes = _fitted_codec(source, config, codec, progress)
    found = encode_dump(
        source, out, fitted, effort=effort, drawn=drawn, overwrite=overwrite, device=config.device, progress=progress
    )
    if drawn is None and found["augmentation_bits"] and recipe_file(source.path).exists():
        notes += _add_seeded_price(found, recipe_file(source.path))
    notes += _size_notes(found, source, fitted)
    if report:
        found["fit"] = fit_quality(report, sum(fitted.code_bits), None if codec_file is None else str(codec_file))
    return {**found, **noted(list(dict.fromkeys([*found.get("notes", ()), *notes])))}


def _fitted_codec(
    source: LabelSource, config: FitConfig, codec: LabelCodec | str | PathLike[str] | None, progress: Progress
) -> tuple[LabelCodec, dict[str, Any], list[str]]:
    """The codec at the rate that `config` names, the report of its fit where there is one, and notes for the user."""
    if codec is None:
        fitted, report = fit(source, config, progress=progress)
        return fitted, report, list(report.get("notes", ()))
    if isinstance(codec, LabelCodec):
        return at_config(codec, replace(config, seed=0)), {}, []
    if not Path(codec).exists():
        raise NoSuchFile(f"{codec}: no such file; name a codec that `vqlabel fit` wrote, or one to fit first: {', '.join(CODECS)}")
    loaded, report = load_codec(codec)
    fitted = at_config(loaded, config)
    notes = []
    if config.bits not in (None, sum(fitted.code_bits)) and fitted.config.max_codes is None:
        notes.append(
            f"--bits {config.bits}: {codec} has codes of {max(fitted.code_bits)} bits, so {sum(fitted.code_bits)} bits of codes are "
            "stored a label"
        )
    return fitted, report, notes


def _size_notes(found: dict[str, Any], source: LabelSource, codec: LabelCodec) -> list[str]:
    dense = found["records"] * source.classes * (4 if source.dtype == "F32" else 2)
    if found["bytes"] <= dense or not codec.decoder_tensors():
        return []
    return [f"{found['bytes']:,} bytes for labels that take {dense:,} as they are: so few of them are best kept with --codec raw"]


def _add_seeded_price(found: dict[str, Any], recipe: Path) -> list[str]:
    """Adds what the augmentation would take as a seed; returns a note where that cannot be told."""
    try:
        bits = drawn_bits(read_recipe(recipe))
    except VqlabelError as error:
        return [f"what seeded views would take is not known: {error}"]
    found["augmentation_bits"]["if_seeded"] = round(bits / max(1, found["records"]), 3)
    return []


def encode_dump(
    source: LabelSource,
    out: str | PathLike[str],
    codec: LabelCodec,
    *,
    effort: str = "normal",
    drawn: DrawnColumns | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode a dump by a fitted codec. Returns what `pack` does, without `fit`; raises what it does."""
    check_codec(codec, source)
    about = describe_fit(source)
    notes = check_fitted_on(codec, about, source.path)
    checks = _PassChecks(
        source, codec, drawn, unknown_view=about.view is None and about.first_sha256 != codec.fitted_on.first_sha256
    )
    with codec_on(codec, effort, device), VqlWriter(out, codec.config, source.order, overwrite=overwrite) as writer:
        with closing(encoded(source, codec, device)) as groups:  # its workers are done before the codec goes back
            for done, batches, codes in groups:
                for batch in batches:
                    writer.add_columns(batch)
                    checks.add(batch)
                writer.add_codes(codes)
                progress("packing", done, len(source), {})
        records = writer.end_codes()
        checks.finish()
        kept_bits = 0 if drawn is None else writer.column_bits()
        tensors = {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()}
        images = _images_of(source, about.images, checks.whole.images() if drawn is None else drawn.recipe.images)
        made_by = {"labels_sha256": checks.fingerprint.hexdigest()}
        size = writer.finish(source, tensors, made_by, drawn=drawn, images=images)
    found = {"path": str(writer.path), "records": records, "classes": source.classes}
    found |= {"epochs": len({place.epoch for place in source.places}), "bytes": size}
    return {**found, **_stored_bits(VqlFile(writer.path), None if drawn is None else kept_bits), **noted([*notes, *checks.notes()])}


def _stored_bits(file: VqlFile, kept_bits: int | None) -> dict[str, Any]:
    """Bits per label of codes, and of augmentation and order."""
    container, count = file.container, max(1, file.records)
    columns = {name for name in container.streams if name.startswith(PREFIX)}
    stored = 8 * sum(one.stop - one.start for name, one in container.sections.items() if name.startswith(PREFIX))
    augmentation: dict[str, float] = {"stored": stored} if kept_bits is None else {"stored": stored, "if_kept": kept_bits}
    if columns == {PREFIX + "batch"}:
        augmentation = {}  # the dump has neither
    codes = sum(container.stored(name) for name in (CODES, COUNTS) if name in container.streams)
    return {
        "code_bits": file.label_bits,
        "stored_code_bits": round(8 * codes / count, 4),
        "augmentation_bits": {name: round(bits / count, 3) for name, bits in augmentation.items()},
    }


class _PassChecks:
    """What is learned and checked of a dump while its batches go by.

    Attributes:
        fingerprint: sha256 of all labels, one after the other.
        whole: which images the epochs show.
    """

    def __init__(self, source: LabelSource, codec: LabelCodec, drawn: DrawnColumns | None, *, unknown_view: bool) -> None:
        self._source, self._codec, self._drawn = source, codec, drawn
        self._prior = codec.config.image_prior if unknown_view else None
        self._edges, self._flat = list[int](), ConstantRows(path=source.path)
        self.fingerprint, self.whole = hashlib.sha256(), WholeEpochs()

    def add(self, batch: LabelBatch) -> None:
        """Raises BadLabels where the batch is not the one that the recipe draws."""
        self._flat.add(batch.labels)
        if batch.image is not None:
            self.whole.add(batch.place.epoch, batch.image)
        if self._prior is not None and batch.mix_box is not None:
            self._edges.append(max(batch.mix_box))
        if self._drawn is not None:
            check_drawn(batch, self._drawn, _number_in_recipe(batch, self._drawn, self._source), self._source.path)
        self.fingerprint.update(batch.label_bytes())

    def finish(self) -> None:
        """Raises BadLabels or UsageError where the whole dump is not what the codec, or a file, can hold."""
        self._source.check_unchanged()
        self._flat.check()
        if self._prior is not None and self._edges:
            self._codec.fitted_on.refuse_edge(max(self._edges), len(self._edges), self._prior, self._source.path)

    def notes(self) -> list[str]:
        """On rows that are no labels."""
        return list(self._flat.notes())


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
        check_drawn(batch, drawn, _number_in_recipe(batch, drawn, source), source.path)


def _number_in_recipe(batch: LabelBatch, drawn: DrawnColumns, source: LabelSource) -> int:
    """Number of a batch among those that a recipe draws."""
    number = batch.place.epoch * drawn.recipe.batches + batch.place.batch
    if not (0 <= number < len(drawn.places) and drawn.places[number] == batch.place):
        raise UsageError(
            f"{source.path}: batch {batch.place.batch} of epoch {batch.place.epoch} is none of its recipe's; pack with --augmentation keep"
        )
    return number
