"""A path -> its label source; a layout's name -> its writer. The layout is detected, or named."""

import os.path
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from vqlabel.config import DOMAINS
from vqlabel.errors import BadLabels, NoSuchFile, TargetExists, VqlabelError, require
from vqlabel.labels.domain import settle_domain
from vqlabel.labels.image_order import with_images
from vqlabel.labels.image_set import DIGESTS
from vqlabel.labels.layouts.arrays import ArrayWriter, array_form
from vqlabel.labels.layouts.choose import Selection
from vqlabel.labels.layouts.edc import EdcSource, EdcWriter
from vqlabel.labels.layouts.fkd import FkdSource, FkdWriter, holds_images
from vqlabel.labels.layouts.gvbsm import GvbsmSource, GvbsmWriter
from vqlabel.labels.layouts.hald import FILE as HALD_FILE
from vqlabel.labels.layouts.hald import ORDER_FILE as HALD_ORDER_FILE
from vqlabel.labels.layouts.hald import HaldSource, HaldWriter, find_epochs
from vqlabel.labels.layouts.lpld import LpldSource, LpldWriter
from vqlabel.labels.layouts.lpqld import BATCH_ORDER_FILE, LpqldSource, LpqldWriter, find_flat
from vqlabel.labels.layouts.misplaced import nothing_here, too_high, too_low, wrong_file
from vqlabel.labels.layouts.shards import SUFFIXES, ArraySource, shards_of
from vqlabel.labels.layouts.sre2l import Sre2lSource, Sre2lWriter
from vqlabel.labels.layouts.tensor import SUFFIXES as TENSOR_SUFFIXES
from vqlabel.labels.layouts.tensor import TensorSource, TensorWriter
from vqlabel.labels.layouts.tinyvit import FOLDER, TinyVitSource, TinyVitWriter
from vqlabel.labels.layouts.torch_items import list_length
from vqlabel.labels.layouts.tree import ORDER_FILE, find_batches
from vqlabel.labels.layouts.webdataset import is_tar
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter
from vqlabel.storage.filetypes import is_sidecar, require_regular
from vqlabel.storage.formats import NPY, SAFETENSORS, TENSOR, TREE, TargetFormat
from vqlabel.storage.targets import atomic_target, check_target
from vqlabel.type_checks import check_argument_types

LAYOUTS: dict[str, Callable[..., LabelSource]] = {
    "arrays": ArraySource,
    "sre2l": Sre2lSource,
    "lpld": LpldSource,
    "lpqld": LpqldSource,
    "gvbsm": GvbsmSource,
    "edc": EdcSource,
    "hald": HaldSource,
    "fkd": FkdSource,
    "tinyvit": TinyVitSource,
    "tensor": TensorSource,
}
OF_ARRAYS = ("arrays", "tensor")  # layouts of labels alone, of which a file may hold several arrays
SPARSE = ("lpqld", "fkd", "tinyvit")  # layouts of the k largest numbers, which do not say C
WRITERS: dict[str, type[LabelWriter]] = {
    "arrays": ArrayWriter,
    "sre2l": Sre2lWriter,
    "lpld": LpldWriter,
    "lpqld": LpqldWriter,
    "gvbsm": GvbsmWriter,
    "edc": EdcWriter,
    "hald": HaldWriter,
    "fkd": FkdWriter,
    "tinyvit": TinyVitWriter,
    "tensor": TensorWriter,
}
_OF_LENGTH = {7: "gvbsm", 8: "edc"}  # of the list in a tree's files


@check_argument_types
def open_labels(
    path: str | PathLike[str],
    layout: str | None = None,
    domain: str | None = None,
    *,
    classes: int | None = None,
    images: str | PathLike[str] | None = None,
    columns: str | PathLike[str] | None = None,
    image_digest: str | None = None,
    array: str | None = None,
    axes: str | None = None,
) -> LabelSource:
    """Open a dump of teacher labels.

    Args:
        path: a file of labels [n, C] or [epochs, n, C] (.npy, .npz, .safetensors, .pt, .parquet, .h5 ...; "FILE:NAME" names the array), a
            folder of such shards, or the folder of another layout. docs/inputs.md lists all.
        layout: one of LAYOUTS; None: detected.
        domain: "logits" or "probs"; None: as the file declares it, else logits. Rows from all over the dump, and every batch that is read,
            are held against it.
        classes: C, where the layout stores the k largest numbers alone and so does not say it; None: the largest class in it, and one.
        images: folder of the images that were labelled, in one folder a class. A dump that does not say which image a label is of gets
            the order in which SRe2L shuffles them, if its labels agree with it; one that does is held against them.
        columns: JSON, folder of `images` -> the teacher's class; None: class i is the i-th folder.
        image_digest: by what `images` are told from others when a student is trained: their "names" (None: the same), or their "bytes" too.
        array: name of the array, column, dataset or member of labels where a file holds several; None: found by name, type and shape.
        axes: "images,classes", "epochs,images,classes" or "images,views,classes"; None: one of the first two. "images,classes" drops axes
            of length 1.

    Raises:
        UsageError: no such path, or no such layout or domain; other images.
        BadLabels: the dump is empty or malformed, or its labels do not agree with the images.
        MissingExtra: the reader of such files is not installed.
    """
    path, array = _file_and_array(Path(path), array)
    how = Selection.of(array, axes)
    require(domain is None or domain in DOMAINS, "domain", domain, f"must be one of {', '.join(DOMAINS)}")
    require(image_digest in (None, *DIGESTS), "image_digest", image_digest, f"must be one of {', '.join(DIGESTS)}")
    require(layout is None or layout in LAYOUTS, "layout", layout, f"must be one of {', '.join(LAYOUTS)}")
    if not os.path.exists(path):  # unlike Path.exists it takes a name that is too long
        raise NoSuchFile(
            f"{path}: no such file or directory; name a dump of labels ({', '.join(SUFFIXES)}, a folder of them, or of another layout)"
        )
    if layout == "sre2l" and (path / ORDER_FILE).exists():
        layout = "lpld"  # the same tree, which says more: nobody wants to lose it
    layout = layout or _detect(path)
    require(classes is None or classes >= 2, "classes", classes, "must be 2 or more")
    require(classes is None or layout in SPARSE, "classes", classes, f"must be left out: {layout} says its classes")
    arrays = layout in OF_ARRAYS
    require(array is None or arrays, "array", array, f"must be left out: {layout} records which of its arrays are labels")
    require(axes is None or arrays, "axes", axes, f"must be left out: {layout} records its axes")
    source = LAYOUTS[layout](path, domain, *((how,) if arrays else () if classes is None else (classes,)))
    if layout in SPARSE and classes is None and source.support is not None:
        source.notes.append(
            f"{path}: C = {source.classes:,}: the largest class that is named, plus one; a teacher of more classes needs --classes"
        )
    settle_domain(source, domain)
    if images is None:
        require(columns is None, "columns", str(columns), "says the classes of folders of images: name those with --images")
        require(image_digest is None, "image_digest", image_digest, "is taken of images: name those with --images")
        return source
    return with_images(source, Path(images), columns, image_digest or "names")


def _file_and_array(path: Path, array: str | None) -> tuple[Path, str | None]:
    """ "FILE:NAME" -> the file and the array; another path as it is."""
    file, colon, name = str(path).rpartition(":")
    if not colon or not name or os.path.exists(path) or not os.path.exists(file):
        return path, array
    require(array in (None, name), "array", array, f"must be left out: {path} names {name}")
    return Path(file), name


def _detect(path: Path) -> str:
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
    if batches := find_batches(path):
        six = "lpld" if (path / ORDER_FILE).exists() else "sre2l"
        return _OF_LENGTH.get(list_length(next(iter(batches.values()))), six)
    if find_epochs(path):
        return "hald"
    if whole := too_low(path):
        raise BadLabels(whole)
    if (flat := find_flat(path)) and not is_tar(next(iter(flat.values()))):
        return "lpqld"
    if shards_of(path):
        return "arrays"
    if any(re.fullmatch(FOLDER, f.name) for f in path.iterdir()):
        return "tinyvit"
    if dumps := too_high(path):
        raise BadLabels(dumps)
    if any(not is_sidecar(file) and not is_tar(file) for file in path.rglob("*.tar")):
        return "fkd"
    raise BadLabels(nothing_here(path))


def written_as(out: Path, layout: str | None, usual: str | None = None) -> str:
    """The layout that a target is written in: the one that was named, or as the target ends, or the usual one.

    Raises:
        UsageError: the target is one array and the layout is not, or the other way round.
    """
    form = array_form(out)
    usual = "arrays" if usual in (None, "relabel") else usual
    found = layout or (f"arrays:{form}" if form else "tensor" if out.suffix == ".pt" else usual)
    assert found is not None
    fits = not found.startswith("arrays:") or found == f"arrays:{form}"
    require(fits, "layout", found, f"needs a target that ends in .{found.partition(':')[2]}, which {out} does not")
    if not found.startswith("arrays:"):
        limit = (
            f"needs a folder to write, and {out} is one array: name a folder"
            if found != "arrays"
            else "is what its end says: leave it out"
        )
        require(form is None, "layout", found, limit)
        require(
            found != "arrays",
            "out",
            str(out),
            "must end in .npy or .safetensors; for a dump of another layout pass --layout sre2l, lpld ...",
        )
    return found


def check_writer(about: About, layout: str, batch: LabelBatch) -> None:
    """Refuse a layout that cannot hold such labels, or such a batch, before they are made."""
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder) / "dump", about, layout, whole=False) as writer:
        writer.add(batch)


@contextmanager
def writing(
    out: str | PathLike[str], about: About, layout: str, *, overwrite: bool = False, whole: bool = True
) -> Iterator[LabelWriter]:
    """A writer of `layout`, "name" or "name:form"; what it wrote appears at `out` when the block ends, whole or not at all.

    Args:
        whole: whether all batches will have been added.

    Raises:
        UsageError: no such layout, or it cannot hold such labels.
        What `check_dump_target` does.
        VqlabelError: files of the dump were removed while it was written.
    """
    target, (name, _, form) = Path(out), layout.partition(":")
    require(name in WRITERS, "layout", layout, f"must be one of {', '.join(WRITERS)}")
    _refuse_other_things(target)
    with atomic_target(target, form_of(layout), overwrite=overwrite) as partial:
        writer = WRITERS[name](partial, about, form or None)
        try:
            yield writer
            if whole:
                writer.finish()
        finally:
            writer.close()
        there = sum(entry.is_file() for entry in partial.rglob("*"))
        if there != writer.files and partial.is_dir():
            raise VqlabelError(
                f"{target}: {writer.files} files were written, {there} of them are still there: somebody removed the others meanwhile; "
                "nothing was left behind"
            )


def form_of(layout: str) -> TargetFormat:
    """What a layout is written as."""
    return {"arrays:npy": NPY, "arrays:safetensors": SAFETENSORS, "tensor": TENSOR}.get(layout, TREE)


def check_dump_target(out: str | PathLike[str], layout: str, *, overwrite: bool) -> None:
    """Refuse a target for a dump in `layout`, before minutes of work.

    Raises:
        TargetExists: `out` is there and `overwrite` is false; or it is a folder with other things in it than a dump.
        UsageError: see `AtomicTarget`.
    """
    _refuse_other_things(Path(out))
    check_target(out, form_of(layout), overwrite=overwrite)


def _refuse_other_things(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not _is_dump(target):
        raise TargetExists(
            f"{target} is a folder with other things in it; name a new one, or one that holds a dump of labels and nothing else"
        )


def _is_dump(path: Path) -> bool:
    """Whether a folder holds nothing but a dump of batches, so that replacing it loses nothing else."""
    orders = (ORDER_FILE, BATCH_ORDER_FILE, HALD_ORDER_FILE)
    parts = rf"epoch_\d{{1,9}}|batch_\d{{1,9}}\.tar|{FOLDER}|{HALD_FILE}"
    return all(entry.name in orders or re.fullmatch(parts, entry.name) for entry in path.iterdir()) or holds_images(path)
