"""A dump -> a `.vql`: fit a codec unless one is given, then encode in one pass; memory grows with the batch only."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from vqlabel.codecs import CODECS, LabelCodec, load_codec
from vqlabel.codecs import save_codec as write_codec
from vqlabel.codecs.at_config import at_config
from vqlabel.codecs.config import CODES, COUNTS
from vqlabel.config import FitConfig
from vqlabel.errors import NoSuchFile, UsageError, VqlabelError, require
from vqlabel.labels import LabelBatch, LabelSource, open_labels
from vqlabel.labels.constant_rows import ConstantRows
from vqlabel.labels.fingerprint import LabelsHash
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.memory import Dump
from vqlabel.labels.pruning import Pruned
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart, check_distinct
from vqlabel.storage.formats import CODEC, VQL
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import check_drawn, drawn_bits, read_recipe, recipe_file
from vqlabel.vql.writer import VqlWriter
from vqlabel.workflows.config_options import PackOptions, config_of
from vqlabel.workflows.encode import check_codec, check_fitted_on, codec_on, describe_fit, encoded, spans_of
from vqlabel.workflows.fit import fit_source
from vqlabel.workflows.quality import fit_quality
from vqlabel.workflows.run_state import RunState, state_path
from vqlabel.workflows.tune import check_budget, tune_source


@check_argument_types
def pack(
    dump: Dump,
    out: str | PathLike[str],
    config: FitConfig | None = None,
    *,
    codec: LabelCodec | str | PathLike[str] | None = None,
    kl: float | None = None,
    save_codec: str | PathLike[str] | None = None,
    effort: str = "normal",
    augmentation: str | DrawnColumns = "keep",
    keep: float | None = None,
    by: str = "epoch",
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Unpack[PackOptions],
) -> dict[str, Any]:
    """Encode a dump into a `.vql` file; fit a codec first unless one is given. This is `vqlabel pack`.

    The state of an unfinished fit, and then the fitted codec, are kept beside the output as `<out>.state`, and the same
    call continues from there: see `fit`.

    Args:
        dump: a path for `open_labels`, a source, or labels in memory (`open_labels`).
        config: of the codec to fit, or the rate at which a fitted codec is used; its seed chooses what `keep` keeps. Or
            pass its fields: `pack(dump, out, ratio=500)`.
        codec: a fitted codec (`fit`, `load_codec`), the path of its file, or the kind to fit ("vqae", "raw" ...); None:
            fit one.
        kl: fit the smallest codec with this held-out KL, as `tune` does.
        save_codec: file to write the fitted codec to.
        restart: discards the state of an interrupted run.
        effort: of the search for the best codes of a label: "fast", "normal" or "best" (`vqae.choose.SWEEPS`, `BEAM`).
        augmentation: "keep": store it as the dump has it. "seeded": store the seed of the recipe beside the dump, or of
            a recipe given in memory, in place of the augmentation; every batch is compared with what the recipe draws.
        keep: label pruning: share of the dump to keep, 0 < keep <= 1; None: no pruning, and the file records none.
        by: unit that pruning keeps or drops: "epoch", "batch" or "view".

    Returns:
        records, classes, epochs, bytes.
        code_bits: per label before any coding; at a variable rate those of the mean label with its stored count.
        stored_code_bits: per label, as stored in the file.
        augmentation_bits: per label, of augmentation and order; empty if the dump has neither. `stored`: in the file.
            With a recipe also `if_kept`, about what they would take without it; without one `if_seeded`, what they
            would take as a seed, if a recipe lies beside the dump.
        fit: see `quality.fit_quality`.
        missed: a sentence, if `kl` was not reached; the codec is the nearest one.
        notes: sentences on what may surprise the user.

    Raises:
        UsageError: the codec is for another number of classes, domain or dtype, or its prior for other images or views;
            or `out` is not a valid path of a .vql file (`storage.targets.check_target`, `storage.apart.check_apart`);
            or the state is of another dump or configuration.
        BadLabels: the dump is malformed, or changed while it was read; nothing is written.
        TargetExists: `out` or `save_codec` exists and `overwrite` is false.
    """
    is_valid = isinstance(augmentation, DrawnColumns) or augmentation in ("keep", "seeded")
    require(is_valid, "augmentation", augmentation, "must be keep or seeded")
    config = config_of(FitConfig, config, options)
    if isinstance(codec, str) and codec in CODECS:
        require(config.codec in (None, codec), "codec", codec, f"contradicts the config, whose codec is {config.codec}")
        config, codec = replace(config, codec=codec), None
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    source = source if keep is None else Pruned(source, keep, by, config.seed)
    codec_file = None if codec is None or isinstance(codec, LabelCodec) else Path(codec)
    check_apart(out, *source.inputs, beside=() if codec_file is None else (codec_file,))
    check_target(out, VQL, overwrite=overwrite)
    _check_fit_options(config, codec, kl)
    if save_codec is not None:
        check_saved_codec(save_codec, out, codec is not None, source.inputs, overwrite=overwrite)
    drawn, state = _recipe_of(source, augmentation), RunState(out if codec is None else None, restart=restart)
    fitted, report, notes = _fitted_codec(source, config, codec, kl, state, progress)
    result = encode_dump(
        source, out, fitted, effort=effort, drawn=drawn, overwrite=overwrite, device=config.device, progress=progress
    )
    if save_codec is not None:
        write_codec(fitted, save_codec, report, overwrite=overwrite)
    state.remove()
    if drawn is None and result["augmentation_bits"] and recipe_file(source.path).exists():
        notes += _add_seeded_bits(result, recipe_file(source.path))
    notes += _size_notes(result, source, fitted)
    if report:
        result["fit"] = fit_quality(report, sum(fitted.code_bits), None if codec_file is None else str(codec_file))
    missed = {"missed": report["missed"]} if kl is not None and "missed" in report else {}
    return {**result, **missed, **noted(list(dict.fromkeys([*result.get("notes", ()), *notes])))}


def _check_fit_options(config: FitConfig, codec: object, kl: float | None) -> None:
    """Raises UsageError if `kl` contradicts other options."""
    if kl is None:
        return
    if codec is not None:
        name = f"codec {codec.kind}" if isinstance(codec, LabelCodec) else codec
        raise UsageError(f"--kl {kl:g}: {name} is already fitted; remove --kl, or pass a kind of codec to fit")
    check_budget(config, None, kl, judged=False)


def check_saved_codec(
    path: str | PathLike[str],
    out: str | PathLike[str],
    is_fitted: bool,
    inputs: Iterable[str | PathLike[str] | None],
    *,
    overwrite: bool,
) -> None:
    """Check the file of --save-codec before a fit.

    Args:
        out: the `.vql` file.
        is_fitted: whether the run only uses a codec.
        inputs: of the run.
    """
    if is_fitted:
        raise UsageError(f"--save-codec {path}: this run fits no codec; copy the file of --codec, or leave it out")
    check_distinct({"--save-codec": path, "--out": out, "the state of this run": state_path(out)})
    check_apart(path, *inputs)
    check_target(path, CODEC, overwrite=overwrite)


def _recipe_of(source: LabelSource, augmentation: str | DrawnColumns) -> DrawnColumns | None:
    """The columns that a recipe draws, checked against the first batch; None: the augmentation is stored."""
    if augmentation == "keep":
        return None
    drawn = augmentation if isinstance(augmentation, DrawnColumns) else read_recipe(recipe_file(source.path))
    check_recipe(source, drawn)
    return drawn


def _fitted_codec(
    source: LabelSource,
    config: FitConfig,
    codec: LabelCodec | str | PathLike[str] | None,
    kl: float | None,
    state: RunState,
    progress: Progress,
) -> tuple[LabelCodec, dict[str, Any], list[str]]:
    """The codec at the rate of `config`, the report of its fit (empty if unknown), and notes for the user."""
    if codec is None:
        if kl is None:
            fitted, report = fit_source(source, config, state, progress)
        else:
            fitted, report = tune_source(source, config, state, kl=kl, progress=progress)
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
            f"--bits {config.bits}: {codec} has codes of {max(fitted.code_bits)} bits, so each label stores {sum(fitted.code_bits)} bits "
            "of codes"
        )
    return fitted, report, notes


def _size_notes(result: dict[str, Any], source: LabelSource, codec: LabelCodec) -> list[str]:
    """A note if the file is larger than the labels it stores."""
    dense = result["records"] * source.classes * (4 if source.dtype == "F32" else 2)
    if result["bytes"] <= dense or not codec.decoder_tensors():
        return []
    return [f"the file has {result['bytes']:,} bytes, the uncompressed labels {dense:,}: for so few labels use --codec raw"]


def _add_seeded_bits(result: dict[str, Any], recipe: Path) -> list[str]:
    """Add the bits per label that the augmentation would take as a seed; returns a note if they are unknown."""
    try:
        bits = drawn_bits(read_recipe(recipe))
    except VqlabelError as error:
        return [f"the size of seeded views is unknown: {error}"]
    result["augmentation_bits"]["if_seeded"] = round(bits / max(1, result["records"]), 3)
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
    spans: Sequence[range] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode a dump with a fitted codec. Returns and raises the same as `pack`; the result has no `fit`.

    Args:
        spans: all of `encode.spans_of(source)` in the order in which to encode them, which does not change the file.
    """
    check_codec(codec, source)
    about = describe_fit(source)
    notes = check_fitted_on(codec, about, source.path)
    checks = _PassChecks(
        source, codec, drawn, unknown_view=about.view is None and about.first_sha256 != codec.fitted_on.first_sha256
    )
    with codec_on(codec, effort, device), VqlWriter(out, codec.config, source.order, overwrite=overwrite) as writer:
        with closing(encoded(source, codec, device, spans or spans_of(source))) as groups:  # ends before `codec_on` moves the codec
            done = 0
            for indices, batches, codes in groups:
                for index, batch in zip(indices, batches, strict=True):
                    checks.add(index, batch)
                writer.add(indices, codes, batches)
                done += len(batches)
                progress("packing", done, len(source), {})
        records = writer.end_codes()
        checks.finish()
        kept_bits = 0 if drawn is None else writer.column_bits()
        tensors = {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()}
        images = _images_of(source, about.images, writer.images_shown() if drawn is None else drawn.recipe.images)
        made_by = {"labels_sha256": checks.fingerprint.hexdigest(source)}
        size = writer.finish(source, tensors, made_by, drawn=drawn, images=images)
    result = {"path": str(writer.path), "records": records, "classes": source.classes}
    result |= {"epochs": len({place.epoch for place in source.places}), "bytes": size}
    return {
        **result,
        **_stored_bits(VqlFile(writer.path), None if drawn is None else kept_bits),
        **noted([*notes, *checks.notes()]),
    }


def _stored_bits(file: VqlFile, kept_bits: int | None) -> dict[str, Any]:
    """Bits per label of codes, and of augmentation and order.

    `kept_bits`: of the columns that a recipe replaced; None: none did.
    """
    container, count = file.container, max(1, file.records)
    columns = {name for name in container.streams if name.startswith(PREFIX)}
    stored = 8 * sum(section.stop - section.start for name, section in container.sections.items() if name.startswith(PREFIX))
    augmentation: dict[str, float] = {"stored": stored} if kept_bits is None else {"stored": stored, "if_kept": kept_bits}
    if columns == {PREFIX + "batch"}:
        augmentation = {}  # the dump has neither augmentation nor order
    codes = sum(container.stored(name) for name in (CODES, COUNTS) if name in container.streams)
    return {
        "code_bits": file.label_bits,
        "stored_code_bits": round(8 * codes / count, 4),
        "augmentation_bits": {name: round(bits / count, 3) for name, bits in augmentation.items()},
    }


class _PassChecks:
    """Statistics and checks of a dump that need one pass over its batches.

    Attributes:
        fingerprint: of all labels in order.
    """

    def __init__(self, source: LabelSource, codec: LabelCodec, drawn: DrawnColumns | None, *, unknown_view: bool) -> None:
        self._source, self._codec, self._drawn = source, codec, drawn
        self._prior = codec.config.image_prior if unknown_view else None
        self._box_ends, self._constant = list[int](), ConstantRows(path=source.path)
        self.fingerprint = LabelsHash()

    def add(self, index: int, batch: LabelBatch) -> None:
        """Add batch `index` of the dump. Raises BadLabels if it is not the one that the recipe draws."""
        self._constant.add(batch.labels)
        if self._prior is not None and batch.mix_box is not None:
            self._box_ends.append(max(batch.mix_box))
        if self._drawn is not None:
            check_drawn(batch, self._drawn, _index_in_recipe(batch, self._drawn, self._source), self._source.path)
        self.fingerprint.add(index, batch)

    def finish(self) -> None:
        """Raises BadLabels or UsageError if the whole dump is invalid, or has larger views than the codec's prior."""
        self._source.check_unchanged()
        self._constant.check()
        if self._prior is not None and self._box_ends:
            self._codec.fitted_on.refuse_edge(max(self._box_ends), len(self._box_ends), self._prior, self._source.path)

    def notes(self) -> list[str]:
        """Notes on rows that have one value for all classes."""
        return list(self._constant.notes())


def _images_of(source: LabelSource, known: ImageSet | None, implied: int | None) -> ImageSet | None:
    """Which images the labels are of.

    Args:
        known: from the source or its recipe; None if unknown.
        implied: number of images that complete epochs show; None if unknown.

    Raises:
        UsageError: these contradict each other.
    """
    if known is not None and implied not in (None, known.count):
        raise UsageError(
            f"{source.path}: every epoch shows {implied} images, but {known.count} images were given: give the images that were labelled"
        )
    return ImageSet(count=implied) if known is None and implied is not None else known


def check_recipe(source: LabelSource, drawn: DrawnColumns) -> None:
    """Check the first batch of a dump against its recipe, before a codec is fitted.

    Raises:
        UsageError: the dump is pruned by view; a recipe draws complete batches.
        BadLabels: the views of the dump are not those of the recipe.
    """
    if source.about.details.get("pruned", {}).get("by") == "view":
        raise UsageError(
            f"{source.path}: the dump is pruned by view, and a recipe draws complete batches; use --by batch, or --augmentation keep"
        )
    if len(source):
        batch = source.read(0)
        check_drawn(batch, drawn, _index_in_recipe(batch, drawn, source), source.path)


def _index_in_recipe(batch: LabelBatch, drawn: DrawnColumns, source: LabelSource) -> int:
    """Index of a batch among those that a recipe draws.

    Raises:
        UsageError: the recipe does not draw this batch.
    """
    index = batch.place.epoch * drawn.recipe.batches + batch.place.batch
    if not (0 <= index < len(drawn.places) and drawn.places[index] == batch.place):
        raise UsageError(
            f"{source.path}: batch {batch.place.batch} of epoch {batch.place.epoch} is not one that its recipe draws; pack with --augmentation keep"
        )
    return index
