"""A path -> its label source; the name of a layout -> its writer.

The layout of a path is detected, or named by the user.
"""

import os.path
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.config import DOMAINS
from vqlabel.errors import BadLabels, NoSuchFile, TargetExists, UsageError, VqlabelError, require
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.domain import settle_domain
from vqlabel.labels.image_order import with_images
from vqlabel.labels.image_set import DIGESTS
from vqlabel.labels.layouts.arrays import array_form
from vqlabel.labels.layouts.path_hints import above_dumps, below_dump, no_dump, wrong_file
from vqlabel.labels.layouts.registry import LAYOUTS
from vqlabel.labels.layouts.select_array import Selection
from vqlabel.labels.layouts.shards import SUFFIXES
from vqlabel.labels.layouts.tensor import SUFFIXES as TENSOR_SUFFIXES
from vqlabel.labels.layouts.tree import ORDER_FILE
from vqlabel.labels.layouts.webdataset import is_tar
from vqlabel.labels.memory import ArrayLike, open_memory
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.writer import LabelWriter
from vqlabel.storage.filetypes import require_regular
from vqlabel.storage.formats import NPY, SAFETENSORS, TENSOR, TREE, TargetFormat
from vqlabel.storage.targets import atomic_target, check_target
from vqlabel.type_checks import check_argument_types


@check_argument_types
def open_labels(
    path: str | PathLike[str] | ArrayLike | Mapping[str, Any] | list[Any],
    layout: str | None = None,
    domain: str | None = None,
    *,
    classes: int | None = None,
    images: str | PathLike[str] | None = None,
    class_map: str | PathLike[str] | None = None,
    image_digest: str | None = None,
    array: str | None = None,
    axes: str | None = None,
) -> LabelSource:
    """Open a dump of teacher labels.

    Args:
        path: a file of labels [n, C] or [epochs, n, C] (.npy, .npz, .safetensors, .pt, .parquet, .h5 ...; "FILE:NAME"
            names an array in it), a folder of such shards, or the folder of another layout. docs/inputs.md lists all.
            Or the labels in memory: an array or a tensor, a list of batches, or a mapping with columns beside them,
            {"logits": ..., "image": ..., "crop": ..., "flip": ...}.
        layout: one of LAYOUTS; None: detected.
        domain: "logits" or "probs"; None: as the file declares it, else logits. It is checked against rows from the
            whole dump, and against every batch that is read.
        classes: C, for layouts that store the k largest values and do not record it; None: the largest class in the
            dump, plus 1.
        images: folder of the images that were labelled, with one folder per class. If the dump does not record which
            image a label belongs to, it gets the order in which SRe2L shuffles the images, provided that its labels
            agree with it; otherwise its own order is checked.
        class_map: JSON, class folder of `images` -> the teacher's class; None: class i is the i-th folder.
        image_digest: how `images` are recognised when a student is trained: by their "names" (also None), or also by
            their "bytes".
        array: name of the array, column, dataset or member of labels, if a file holds several; None: selected by name,
            type and shape.
        axes: "images,classes", "epochs,images,classes" or "images,views,classes"; None: one of the first two.
            "images,classes" drops axes of length 1.

    Raises:
        UsageError: there is no such path, layout or domain; an option does not apply to the layout; `images` are other
            images.
        BadLabels: the dump is empty or malformed, or its labels do not agree with the images.
        MissingExtra: the reader of such files is not installed.
    """
    require(domain is None or domain in DOMAINS, "domain", domain, f"must be one of {', '.join(DOMAINS)}")
    require(image_digest in (None, *DIGESTS), "image_digest", image_digest, f"must be one of {', '.join(DIGESTS)}")
    require(layout is None or layout in LAYOUTS, "layout", layout, f"must be one of {', '.join(LAYOUTS)}")
    if images is None:
        require(class_map is None, "class_map", str(class_map), "maps folders of images to classes: pass the images with --images")
        require(image_digest is None, "image_digest", image_digest, "is a digest of images: pass them with --images")
    if not isinstance(path, str | PathLike):
        labels = open_memory(path, Selection.of(array, axes), domain, layout, classes)
        settle_domain(labels, domain)
        return labels if images is None else with_images(labels, Path(images), class_map, image_digest or "names")
    path, array = _split_array_name(Path(path).expanduser(), array)
    if not os.path.exists(path):  # unlike Path.exists it accepts a name that is too long
        raise NoSuchFile(
            f"{path}: no such file or directory; pass a dump of labels ({', '.join(SUFFIXES)}, a folder of them, or of another layout)"
        )
    if layout == "sre2l" and (path / ORDER_FILE).exists():
        layout = "lpld"  # the same tree, with the images of the records
    source = _open(path, layout or _detect(path), domain, classes, array, axes)
    settle_domain(source, domain)
    return source if images is None else with_images(source, Path(images), class_map, image_digest or "names")


def _open(path: Path, layout: str, domain: str | None, classes: int | None, array: str | None, axes: str | None) -> LabelSource:
    """The source of a layout; raises UsageError for options that do not apply to it."""
    selection = Selection.of(array, axes)
    is_array, is_topk = LAYOUTS[layout].options == "array", is_topk_layout(layout)
    require(classes is None or classes >= 2, "classes", classes, "must be 2 or more")
    require(classes is None or is_topk, "classes", classes, f"must be left out: {layout} records the number of classes")
    require(array is None or is_array, "array", array, f"must be left out: {layout} records which of its arrays are labels")
    require(axes is None or is_array, "axes", axes, f"must be left out: {layout} records its axes")
    source = LAYOUTS[layout].source(path, domain, *((selection,) if is_array else () if classes is None else (classes,)))
    if is_topk and classes is None and source.support is not None:
        source.notes.append(
            f"{path}: C = {source.classes:,}: the largest class in the dump, plus one; if the teacher has more classes, pass --classes"
        )
    return source


def _split_array_name(path: Path, array: str | None) -> tuple[Path, str | None]:
    """ "FILE:NAME" -> the file and the array's name; any other path unchanged."""
    file, colon, name = str(path).rpartition(":")
    if not colon or not name or os.path.exists(path) or not os.path.exists(file):
        return path, array
    require(array in (None, name), "array", array, f"must be left out: {path} names {name}")
    return Path(file), name


def _detect(path: Path) -> str:
    """The layout of a path; raises BadLabels with the remedy if it is not a dump."""
    if path.is_file():
        if path.suffix in TENSOR_SUFFIXES:
            return "tensor"
        if path.suffix in SUFFIXES or (path.suffix == ".tar" and is_tar(path)):
            return "arrays"
        raise BadLabels(wrong_file(path))
    if not path.is_dir():
        require_regular(path)
    if not any(path.iterdir()):
        raise BadLabels(f"{path}: the folder is empty; a dump has at least one batch or shard")
    return _detect_folder(path)


def _detect_folder(path: Path) -> str:
    hints: tuple[Callable[[Path], str | None], ...] = (below_dump, above_dumps, no_dump)  # asked when no layout of a step fits
    for step, hint in enumerate(hints):
        for layout in LAYOUTS.values():
            if layout.step == step and layout.detect is not None and (name := layout.detect(path)):
                return name
        if message := hint(path):
            raise BadLabels(message)
    raise AssertionError("no_dump always has a message")


def is_topk_layout(layout: str) -> bool:
    """Whether a layout stores the k largest values of a label and does not record C."""
    return layout in LAYOUTS and LAYOUTS[layout].options == "topk"


def output_layout(out: Path, layout: str | None, default: str | None = None) -> str:
    """The layout to write a target in, "name" or "name:form": as requested, or by the target's suffix, or `default`.

    Args:
        layout: as the user passed it; None: not passed.
        default: layout of the source; None, or "relabel": arrays.

    Raises:
        UsageError: the target is a single file and the layout needs a folder, or the other way round.
    """
    form = array_form(out)
    default = "arrays" if default in (None, "relabel") else default
    chosen = layout or (f"arrays:{form}" if form else "tensor" if out.suffix == ".pt" else default)
    assert chosen is not None
    if chosen.startswith("arrays:"):
        fits = chosen == f"arrays:{form}"
        require(fits, "layout", chosen, f"needs a target that ends in .{chosen.partition(':')[2]}, which {out} does not")
        return chosen
    if chosen == "arrays":
        require(form is None, "layout", chosen, "follows from the target's suffix: leave it out")
        raise UsageError(
            f"out is {str(out)!r}; it must end in .npy or .safetensors; for a dump of another layout pass --layout sre2l, lpld ..."
        )
    require(form is None, "layout", chosen, f"needs a folder as target, but {out} is a single array: pass a folder")
    return chosen


def check_writer(about: About, layout: str, batch: LabelBatch) -> None:
    """Check that a layout can store such labels and such a batch, by writing the batch to a temporary folder.

    Raises:
        UsageError: it cannot.
    """
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder) / "dump", about, layout, whole=False) as writer:
        writer.add(batch)


@contextmanager
def writing(
    out: str | PathLike[str], about: About, layout: str, *, overwrite: bool = False, whole: bool = True
) -> Iterator[LabelWriter]:
    """A writer of `layout`, "name" or "name:form"; the dump appears at `out` when the block ends, or not at all.

    Args:
        whole: whether all batches are added in the block, so that the writer can finish the dump.

    Raises:
        UsageError: there is no such layout, or it cannot store such labels.
        TargetExists: see `check_dump_target`.
        VqlabelError: files of the dump were removed while it was written.
    """
    target, (name, _, form) = Path(out), layout.partition(":")
    require(name in LAYOUTS, "layout", layout, f"must be one of {', '.join(LAYOUTS)}")
    _refuse_other_contents(target)
    with atomic_target(target, target_form(layout), overwrite=overwrite) as partial:
        writer = LAYOUTS[name].writer(partial, about, form or None)
        try:
            yield writer
            if whole:
                writer.finish()
        finally:
            writer.close()
        files = sum(entry.is_file() for entry in partial.rglob("*"))
        if files != writer.files and partial.is_dir():
            raise VqlabelError(
                f"{target}: {writer.files} files were written, but {files} exist: another process removed the others meanwhile; nothing is "
                "left at the target"
            )


def target_form(layout: str) -> TargetFormat:
    """Whether a layout is written as a folder or as one file, and of which type."""
    return {"arrays:npy": NPY, "arrays:safetensors": SAFETENSORS, "tensor": TENSOR}.get(layout, TREE)


def check_dump_target(out: str | PathLike[str], layout: str, *, overwrite: bool) -> None:
    """Check that a dump in `layout` can be written to `out`, before any work is done.

    Raises:
        TargetExists: `out` exists and `overwrite` is false; or it is a folder that contains other things than a dump.
        UsageError: see `AtomicTarget`.
    """
    _refuse_other_contents(Path(out))
    check_target(out, target_form(layout), overwrite=overwrite)


def _refuse_other_contents(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not _is_dump(target):
        raise TargetExists(
            f"{target} is a folder that contains more than a dump of labels; pass a new folder, or one that contains only a dump"
        )


def _is_dump(path: Path) -> bool:
    """Whether a folder contains only a dump of batches, so that replacing it loses nothing else."""
    entries = "|".join(layout.entries for layout in LAYOUTS.values() if layout.entries)
    others = [layout.holds_only for layout in LAYOUTS.values() if layout.holds_only is not None]
    return all(re.fullmatch(entries, entry.name) for entry in path.iterdir()) or any(holds_only(path) for holds_only in others)
