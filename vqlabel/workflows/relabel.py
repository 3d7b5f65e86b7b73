"""Images, a recipe and a teacher -> the labels of all views, as codes or as a dump; dense labels exist for one batch at a time."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.bitstream import narrowest_dtype
from vqlabel.codecs import LabelCodec, load_codec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.dtypes import numpy_type
from vqlabel.errors import BadLabels, UsageError, VqlabelError, require
from vqlabel.labels import LabelBatch, LabelSource, writing
from vqlabel.labels.checks import check_domain
from vqlabel.labels.layouts.tree import DRAWS, SEED, Shuffle
from vqlabel.labels.open import check_dump_target, check_writer, output_layout
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import INTERNAL, VQL
from vqlabel.storage.journal import Journal
from vqlabel.storage.targets import check_target
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import DrawnColumns, Recipe, ReorderedColumns
from vqlabel.views.render_pil import render
from vqlabel.vql.decode import as_tensor
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import digest, recipe_file, write_recipe
from vqlabel.vql.writer import VqlWriter
from vqlabel.workflows.encode import check_codec, check_fitted_on, codec_on, encode
from vqlabel.workflows.teachers import Teacher, TeacherFailed

LAYOUTS = ("sre2l", "lpld", "lpqld", "gvbsm", "edc")  # layouts that record the view of every label
DTYPES = ("F16", "F32")  # of the labels


class TeacherSource(LabelSource):
    """A dump whose labels a teacher computes when they are read.

    Args:
        pictures: the images that the recipe draws from.
        dtype: of the labels: "F16" or "F32".
        device: where the teacher runs.
        image_digest: what identifies the images when a student is trained: their "names", or also their "bytes".

    Attributes:
        drawn: places and augmentation of all records.

    Raises:
        UsageError: the teacher returns no logits for views of this size.
    """

    layout, domain, order = "relabel", "logits", "explicit"

    def __init__(
        self,
        pictures: ImageFolder,
        teacher: Teacher,
        recipe: Recipe,
        *,
        dtype: str = "F16",
        device: str = "cpu",
        image_digest: str = "names",
    ) -> None:
        require(dtype in DTYPES, "dtype", dtype.lower(), "must be f16 or f32")
        self.path, self.dtype = pictures.folder, dtype
        sizes = pictures.sizes()
        self.images, self.view = pictures.image_set(image_digest), recipe.view
        self.drawn = DrawnColumns(recipe, sizes[:1] if (sizes == sizes[0]).all() else sizes, self.images)
        self.places = self.drawn.places
        self.teacher, self._pictures, self._device = teacher.to(device), pictures, device
        try:
            self.classes = self.teacher(torch.zeros(1, 3, recipe.view, recipe.view, device=device)).shape[1]
        except TeacherFailed as error:
            raise UsageError(f"{error}; it must accept any number of views of the size --view") from error

    def shuffle_as_sre2l(self) -> None:
        """Order the images as SRe2L's script, with PyTorch 1.11 or later, will read the labels; views stay those of the recipe."""
        shuffle = Shuffle(self.drawn.recipe.images, self.drawn.recipe.epochs)
        self.drawn = ReorderedColumns(self.drawn, shuffle.order_of, f"SRe2L's script (seed {SEED}, {DRAWS} permutations an epoch)")

    @cached_property
    def made_by(self) -> dict[str, str]:
        """The teacher that a file records: its name, and the sha256 of its weights, mean and deviation."""
        return {"teacher": self.teacher.name, "teacher_sha256": sha256_of(self.teacher.state_dict())}

    def key(self) -> dict[str, Any]:
        """All that the labels depend on; the journal of an interrupted run is continued only if it has the same key."""
        views = {
            "recipe": self.drawn.recipe.to_dict(),
            "digest": digest(self.drawn),
            "images": f"{len(self._pictures)} with the digest {self._pictures.digest()}",
        }
        return {**self.made_by, "scale": self.teacher.scale, "bgr": self.teacher.bgr, **views, "dtype": self.dtype}

    def read_from(self, first: int) -> Iterator[tuple[LabelBatch, torch.Tensor]]:
        """Yield the batches from index `first` on, each with its views [n, 3, view, view]; the next views are rendered while the teacher runs."""
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] | None = pool.submit(self._views, first) if first < len(self) else None
            for index in range(first, len(self)):
                assert ahead is not None
                views = ahead.result()
                ahead = pool.submit(self._views, index + 1) if index + 1 < len(self) else None
                yield self._labelled(index, views), views

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        return self._labelled(index, self._views(index)), f"the teacher's labels of batch {index}"

    def _views(self, index: int) -> torch.Tensor:
        """[n, 3, view, view] float32 in 0..1; contiguous, since some networks flatten it with `Tensor.view`."""
        drawn = self.drawn.batch(index, np.empty((0, 0), np.float32))
        views = torch.from_numpy(render(self._pictures, drawn, self.drawn.recipe.view)).permute(0, 3, 1, 2).contiguous()
        return views / 255 if views.dtype == torch.uint8 else views

    def _labelled(self, index: int, views: torch.Tensor) -> LabelBatch:
        """The batch at `places[index]` with the teacher's labels of its views."""
        try:
            logits = self.teacher(views.to(self._device)).cpu().numpy()
        except TeacherFailed as error:
            raise UsageError(f"{error}, though it accepted one such view of zeros: it must accept any number of views") from error
        with np.errstate(over="ignore"):
            labels = logits.astype(numpy_type(self.dtype))
        self._check_logits(logits, labels, f"teacher {self.teacher.name}, batch {index}")
        return self.drawn.batch(index, labels)

    def _check_logits(self, logits: NDArray[np.floating], labels: NDArray[np.floating], name: str) -> None:
        """Check logits [n, C] of the teacher, and the same as labels of `dtype`.

        Raises:
            VqlabelError: a logit is -inf or NaN, or overflows `dtype`.
            UsageError: these are probabilities.
        """
        masked = np.isneginf(logits)
        if masked.any() and np.isfinite(logits[~masked]).all():
            row, column = (int(i) for i in np.argwhere(masked)[0])
            raise VqlabelError(
                f"{name}, view {row}: the logit of class {column} is -inf; let the network return -10000 for a masked class: its probability "
                "is 0, too"
            )
        if not np.isfinite(labels).all():
            raise VqlabelError(
                f"{name}: returns NaN, or a logit outside the range of {self.dtype.lower()}; check --mean and --std, or try --dtype f32"
            )
        try:
            check_domain(labels, "logits", name)
        except BadLabels:
            raise UsageError(
                f"{name}: returns probabilities; labels must be logits, before softmax: pass a network without softmax"
            ) from None


@large_operations()
@check_argument_types
def relabel(
    source: TeacherSource,
    out: str | PathLike[str],
    *,
    codec: LabelCodec | str | PathLike[str] | None = None,
    layout: str | None = None,
    effort: str = "normal",
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Label every view of a recipe, into a `.vql` or a dump. After an interruption, even by kill -9, a second run continues and gives the bytes
    of an uninterrupted one.

    Args:
        out: a `.vql`, which stores the views as a recipe at 0 bits per label; or a dump of `layout`, with the recipe in a file beside it.
        layout: one of LAYOUTS. "sre2l" has the images in the order of SRe2L's script.
        codec: for a `.vql`: a fitted codec, or the path of its file; None: uncompressed labels.
        effort: of the search for codes, see `pack`.
        device: where the codec runs.

    Returns:
        path, records, classes; for a `.vql` bytes and code_bits, for a dump layout and dtype; notes, if there are any.

    Raises:
        UsageError: the codec is for other labels; or an interrupted run had other settings.
        TargetExists: `out` exists and `overwrite` is false.
    """
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
    notes = check_fitted_on(used_codec, FittedOn(images=source.images, view=source.view), source.path)
    sizes, dtype = np.diff(source.drawn.starts).tolist(), narrowest_dtype(used_codec.code_bits).name
    path, key = target.with_name(target.name + ".journal"), {**source.key(), **_key_of(used_codec, effort)}
    check_relabel_target(target, layout, overwrite=overwrite)
    if not into_vql and not path.exists():  # with a journal, the recipe is that of the interrupted run
        check_target(recipe_file(target), INTERNAL, overwrite=overwrite)
    with codec_on(used_codec, effort, device), Journal(path, key, sizes, len(used_codec.code_bits), dtype) as journal:
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
    """Raises UsageError if the layout cannot represent the first batch. Labels for "sre2l" are put in its script's order first."""
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
    """The layout with its form. Raises UsageError unless it records the view of every label; the message lists those that do."""
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
        for codes in journal:
            writer.add_codes(codes.astype(np.uint32))
        writer.end_codes()
        writer.finish(source, tensors, source.made_by, drawn=source.drawn, images=source.images)
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


def sha256_of(tensors: Mapping[str, Any]) -> str:
    """sha256 of the names and bytes of tensors, or of other values of a state dict, sorted by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        if isinstance(tensor, torch.Tensor) and not tensor.is_quantized:
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:  # weights of a quantised network, or extra state of a module
            torch.save(tensor, data := io.BytesIO())
            total.update(data.getvalue())
    return total.hexdigest()
