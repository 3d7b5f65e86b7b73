"""Images, a recipe and a teacher -> the labels of all views, as codes or as a dump; one dense batch at a time."""

from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import nn

from vqlabel.bitstream import narrowest_dtype
from vqlabel.codecs import LabelCodec, load_codec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.dtypes import numpy_type
from vqlabel.errors import UsageError, require
from vqlabel.labels import writing
from vqlabel.labels.open import check_dump_target, check_writer, output_layout
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import INTERNAL, VQL
from vqlabel.storage.journal import Journal
from vqlabel.storage.targets import check_target
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.decode import as_tensor
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import recipe_file, write_recipe
from vqlabel.vql.writer import VqlWriter
from vqlabel.workflows.encode import check_codec, check_fitted_on, codec_on, encode
from vqlabel.workflows.relabel_images import Images, RelabelOptions, as_teacher_source
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.user_code import sha256_of

LAYOUTS = ("sre2l", "lpld", "lpqld", "gvbsm", "edc")  # layouts that record the view of every label


@large_operations()
@check_argument_types
def relabel(
    source: Images,
    out: str | PathLike[str],
    *,
    teacher: nn.Module | str | None = None,
    codec: LabelCodec | str | PathLike[str] | None = None,
    layout: str | None = None,
    effort: str = "normal",
    device: str = "cpu",
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Unpack[RelabelOptions],
) -> dict[str, Any]:
    """Label every view of a recipe, into a `.vql` or a dump. After an interruption, even by kill -9, a second run
    continues and gives the bytes of an uninterrupted one.

        relabel("images/", "labels.vql", teacher=network, epochs=100, view=64)

    Args:
        source: a folder of images; images in memory, [N, 3, H, W] in 0..1 or uint8, or a list of PIL images; or a
            `TeacherSource`, which has the teacher and all options.
        teacher: the network, which is set to eval mode, or its name for `load_teacher`.
        options: of the views (epochs, batch, view, mix, scale, flip, patches, seed), and mean and std, by which views
            are normalized: of a network, ImageNet's by default. See `workflows.relabel_images.RelabelOptions`.
        out: a `.vql`, which stores the views as a recipe at 0 bits per label; or a dump of `layout`, with the recipe in
            a file beside it.
        layout: one of LAYOUTS. "sre2l" has the images in the order of SRe2L's script.
        codec: for a `.vql`: a fitted codec, or the path of its file; None: uncompressed labels.
        effort: of the search for codes, see `pack`.
        device: where the codec runs, and the teacher if images are given.
        restart: discards what an interrupted run has labelled.

    Returns:
        path, records, classes; for a `.vql` bytes and code_bits, for a dump layout and dtype; notes, if there are any.

    Raises:
        UsageError: the codec is for other labels; views with shuffled patches are to become a dump; or an interrupted
            run had other settings.
        TargetExists: `out` exists and `overwrite` is false.
    """
    source = as_teacher_source(source, teacher, device, options)
    target, raw = Path(out), RawCodec(RawConfig(classes=source.classes, domain="logits", dtype=source.dtype))
    codec = load_codec(codec)[0] if isinstance(codec, str | PathLike) else codec
    into_vql, used_codec = target.suffix == ".vql", codec or raw
    check_apart(target, source.path)
    if into_vql:
        require(layout is None, "layout", layout, f"is for a dump; {out} is a .vql file")
    else:
        require(codec is None, "codec", "a fitted one", f"makes codes for a .vql file; {out} is a dump")
        layout = _layout_of(target, layout)
        _check_layout(source, layout)
    check_codec(used_codec, source)
    notes = check_fitted_on(used_codec, FittedOn(images=source.about.images, view=source.about.view), source.path)
    sizes, dtype = np.diff(source.drawn.starts).tolist(), narrowest_dtype(used_codec.code_bits).name
    path, key = target.with_name(target.name + ".journal"), {**source.key(), **_key_of(used_codec, effort)}
    check_relabel_target(target, layout, overwrite=overwrite)
    if not into_vql and not path.exists():  # with a journal, the recipe is that of the interrupted run
        check_target(recipe_file(target), INTERNAL, overwrite=overwrite)
    with (
        codec_on(used_codec, effort, device),
        Journal(path, key, sizes, len(used_codec.code_bits), dtype, restart=restart) as journal,
    ):
        _label(source, used_codec, journal, device, progress)
        if into_vql:
            result = _write_vql(source, target, used_codec, journal, overwrite)
        else:
            assert layout is not None
            result = _write_dump(source, target, layout, raw, journal, overwrite, progress)
        journal.remove()
    return {
        "path": str(target),
        "records": int(source.drawn.starts[-1]),
        "classes": source.classes,
        **result,
        **noted([*notes, *result.get("notes", ())]),
    }


def _check_layout(source: TeacherSource, layout: str) -> None:
    """Raises UsageError if the layout cannot represent the first batch.

    Labels for "sre2l" are put in its script's order first.
    """
    limit = "must be 1 for a dump, because no script that reads one shuffles patches: write a .vql file"
    require(source.drawn.recipe.patches == 1, "patches", source.drawn.recipe.patches, limit)
    if layout == "sre2l":
        source.shuffle_as_sre2l()
    zeros = np.zeros((int(source.drawn.starts[1]), source.classes), numpy_type(source.dtype))
    check_writer(source.about, layout, source.drawn.batch(0, zeros))


def check_relabel_target(out: Path, layout: str | None, *, overwrite: bool) -> None:
    """Check a target before the teacher runs: raises what `check_target` raises."""
    if out.suffix == ".vql":
        check_target(out, VQL, overwrite=overwrite)
    else:
        check_dump_target(out, _layout_of(out, layout), overwrite=overwrite)


def _layout_of(target: Path, layout: str | None) -> str:
    """The layout, with form. Raises UsageError unless it records a label's view; the message lists those that do."""
    if layout is None or layout.partition(":")[0] not in LAYOUTS:
        fault = f"{target} is not a .vql file"
        if layout is not None:
            fault = f"--layout {layout} cannot represent labels of mixed or cropped views"
        raise UsageError(
            f"{fault}; relabel writes -o labels.vql, or a folder with --layout {', '.join(LAYOUTS)} (or lpqld:K). "
            "`vqlabel unpack labels.vql -o labels.npy` writes the labels of a .vql as an array"
        )
    return output_layout(target, layout)


def _label(source: TeacherSource, codec: LabelCodec, journal: Journal, device: str, progress: Progress) -> None:
    """Append the codes of all batches that the journal lacks."""
    for batch, views in source.read_from(journal.done):
        journal.append(encode(codec, [batch], device, views))
        progress("labelling", journal.done, len(source), {})


def _write_vql(source: TeacherSource, target: Path, codec: LabelCodec, journal: Journal, overwrite: bool) -> dict[str, Any]:
    tensors = {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()}
    with VqlWriter(target, codec.config, source.order, overwrite=overwrite) as writer:
        for index, codes in enumerate(journal):
            writer.add(range(index, index + 1), codes.astype(np.uint32))
        writer.end_codes()
        writer.finish(source, tensors, source.made_by, drawn=source.drawn, images=source.about.images)
    file = VqlFile(target)
    return {"bytes": file.container.size, "code_bits": round(file.label_bits, 4)}


def _write_dump(
    source: TeacherSource, target: Path, layout: str, raw: LabelCodec, journal: Journal, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """The recipe is written first, so that a dump that exists has its recipe."""
    write_recipe(recipe_file(target), source.drawn, overwrite=True)
    with writing(target, source.about, layout, overwrite=overwrite) as writer:
        for index, codes in enumerate(journal):
            labels = raw.decode(as_tensor(codes.astype(np.uint32))).numpy().astype(numpy_type(source.dtype))
            writer.add(source.drawn.batch(index, labels))
            progress("writing", index + 1, len(source), {})
    return {"layout": layout, "dtype": source.dtype.lower(), **noted(writer.notes)}


def _key_of(codec: LabelCodec, effort: str) -> dict[str, Any]:
    """All that the codes depend on besides the labels."""
    tensors = sha256_of(codec.decoder_tensors())
    return {"kind": codec.kind, "config": codec.config.to_dict(), "tensors": tensors, "effort": effort}
