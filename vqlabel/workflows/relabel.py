"""Images and a teacher -> the labels of every view that a recipe draws, as codes, never more of them dense than a batch."""

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

from vqlabel.bitstream import narrowest_dtype
from vqlabel.codecs import LabelCodec, load_codec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
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

LAYOUTS = ("sre2l", "lpld", "lpqld", "gvbsm", "edc")  # that record the view of every label
DTYPES = {"F16": np.float16, "F32": np.float32}


class TeacherSource(LabelSource):
    """Labels that are made when they are read.

    Args:
        dtype: "F16" or "F32".
        image_digest: by what the images are told from others when a student is trained: their "names", or their "bytes" too.

    Raises:
        UsageError: the teacher gives no logits for views of this size.
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
            raise UsageError(f"{error}; it must take any number of views, as large as --view says") from error

    def shuffle_as_sre2l(self) -> None:
        """Label batches in the order in which SRe2L's script, with PyTorch 1.11 or later, will ask for them; views stay the recipe's."""
        shuffle = Shuffle(self.drawn.recipe.images, self.drawn.recipe.epochs)
        self.drawn = ReorderedColumns(self.drawn, shuffle.order_of, f"SRe2L's script (seed {SEED}, {DRAWS} permutations an epoch)")

    @cached_property
    def made_by(self) -> dict[str, str]:
        """By which a file says whose labels it has: weights, mean and deviation."""
        return {"teacher": self.teacher.name, "teacher_sha256": sha256_of(self.teacher.state_dict())}

    def key(self) -> dict[str, Any]:
        """What labels depend on."""
        views = {
            "recipe": self.drawn.recipe.to_dict(),
            "digest": digest(self.drawn),
            "images": f"{len(self._pictures)} with the digest {self._pictures.digest()}",
        }
        return {**self.made_by, "scale": self.teacher.scale, "bgr": self.teacher.bgr, **views, "dtype": self.dtype}

    def read_from(self, first: int) -> Iterator[tuple[LabelBatch, torch.Tensor]]:
        """The batches from number `first` on, with their views; the next views are drawn while the teacher looks at these."""
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] | None = pool.submit(self._views, first) if first < len(self) else None
            for at in range(first, len(self)):
                assert ahead is not None
                seen = ahead.result()
                ahead = pool.submit(self._views, at + 1) if at + 1 < len(self) else None
                yield self._labelled(at, seen), seen

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        return self._labelled(at, self._views(at)), f"the teacher's labels of batch {at}"

    def _views(self, at: int) -> torch.Tensor:
        """[n, 3, view, view] float32 in 0..1, contiguous, as networks expect that flatten with `view`."""
        drawn = self.drawn.batch(at, np.empty((0, 0), np.float32))
        seen = torch.from_numpy(render(self._pictures, drawn, self.drawn.recipe.view)).permute(0, 3, 1, 2).contiguous()
        return seen / 255 if seen.dtype == torch.uint8 else seen

    def _labelled(self, at: int, seen: torch.Tensor) -> LabelBatch:
        with np.errstate(over="ignore"):
            try:
                given = self.teacher(seen.to(self._device)).cpu().numpy()
                labels = given.astype(DTYPES[self.dtype])
            except TeacherFailed as error:
                raise UsageError(f"{error}, though it took one such view of zeros: it must take any number of views") from error
        name = f"teacher {self.teacher.name}, batch {at}"
        if np.isneginf(given).any() and np.isfinite(given[~np.isneginf(given)]).all():
            row, column = (int(i) for i in np.argwhere(np.isneginf(given))[0])
            raise VqlabelError(
                f"{name}, view {row}: the logit of class {column} is -inf; let the network give -10000 for a masked class, which stands for it as well"
            )
        if not np.isfinite(labels).all():
            raise VqlabelError(
                f"{name}: gives NaN, or a logit that {self.dtype.lower()} cannot hold; look at --mean and --std, or try --dtype f32"
            )
        try:
            check_domain(labels, "logits", name)
        except BadLabels:
            raise UsageError(
                f"{name}: gives probabilities; labels are logits, which no softmax has gone over: name the network without it"
            ) from None
        return self.drawn.batch(at, labels)


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
    """Label every view of a recipe, into a `.vql` or a dump. Interrupted, even by kill -9, it goes on where it was, to the same bytes.

    Args:
        out: a `.vql`, whose views are its recipe's, at 0 bits a label; or what `layout` writes, with the recipe in a file beside it.
        layout: one of LAYOUTS. "sre2l" has the recipe's views in the order of images that SRe2L's script shuffles.
        codec: a fitted codec for a `.vql`, or the path of its file; None: labels as they are.

    Raises:
        UsageError: the codec is for other labels; an interrupted run left something of other settings.
        TargetExists: `out` is there and `overwrite` is false.
    """
    target, dense = Path(out), RawCodec(RawConfig(classes=source.classes, domain="logits", dtype=source.dtype))
    codec = load_codec(codec)[0] if isinstance(codec, str | PathLike) else codec
    into_vql, whole = target.suffix == ".vql", codec or dense
    check_apart(target, source.path)
    if not into_vql:
        require(codec is None, "codec", "a fitted one", f"makes codes, which go into a .vql file; {out} is none")
        layout = _layout_of(target, layout)
        if layout == "sre2l":
            source.shuffle_as_sre2l()
        check_writer(
            source.about,
            layout,
            source.drawn.batch(0, np.zeros((int(source.drawn.starts[1]), source.classes), DTYPES[source.dtype])),
        )
    else:
        require(layout is None, "layout", layout, f"is for a dump; {out} is a .vql file")
    check_codec(whole, source)
    notes = check_fitted_on(whole, FittedOn(images=source.images, view=source.view), source.path)
    sizes, kind = np.diff(source.drawn.starts).tolist(), narrowest_dtype(whole.code_bits).name
    path, key = target.with_name(target.name + ".journal"), {**source.key(), **_key_of(whole, effort)}
    check_relabel_target(target, layout, overwrite=overwrite)
    if not into_vql and not path.exists():  # else it is the one that the interrupted run wrote
        check_target(recipe_file(target), INTERNAL, overwrite=overwrite)
    with codec_on(whole, effort, device), Journal(path, key, sizes, len(whole.code_bits), kind) as journal:
        _label(source, whole, journal, device, progress)
        if into_vql:
            found = _write_vql(source, target, whole, journal, overwrite)
        else:
            assert layout is not None
            found = _write_dump(source, target, layout, dense, journal, overwrite, progress)
        journal.remove()
    return {
        "path": str(target),
        "records": int(source.drawn.starts[-1]),
        "classes": source.classes,
        **found,
        **noted([*notes, *found.get("notes", ())]),
    }


def check_relabel_target(out: Path, layout: str | None, *, overwrite: bool) -> None:
    """Refuse a target before the teacher is asked: what `check_target` refuses."""
    if out.suffix == ".vql":
        check_target(out, VQL, overwrite=overwrite)
    else:
        check_dump_target(out, _layout_of(out, layout), overwrite=overwrite)


def _layout_of(target: Path, layout: str | None) -> str:
    """Raises UsageError where labels of views cannot be written so, and says what can."""
    if layout is None or layout.partition(":")[0] not in LAYOUTS:
        what = (
            f"{target} is not a .vql file" if layout is None else f"--layout {layout} cannot hold labels of mixed or cropped views"
        )
        raise UsageError(
            f"{what}; relabel writes -o labels.vql, or a folder with --layout {', '.join(LAYOUTS)} (or lpqld:K). From a .vql, "
            "`vqlabel unpack labels.vql -o labels.npy` makes an array of the labels alone"
        )
    return output_layout(target, layout)


def _label(source: TeacherSource, codec: LabelCodec, journal: Journal, device: str, progress: Progress) -> None:
    """What is not in the journal yet."""
    for batch, seen in source.read_from(journal.done):
        journal.append(encode(codec, [batch], device, seen))
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
    """The recipe first: a dump that is there is a whole one."""
    write_recipe(recipe_file(target), source.drawn, overwrite=True)
    with writing(target, source.about, layout, overwrite=overwrite) as writer:
        for at, codes in enumerate(journal):
            labels = raw.decode(as_tensor(codes.astype(np.uint32))).numpy().astype(DTYPES[source.dtype])
            writer.add(source.drawn.batch(at, labels))
            progress("writing", at + 1, len(source), {})
    return {"layout": layout, "dtype": source.dtype.lower(), **noted(writer.notes)}


def _key_of(codec: LabelCodec, effort: str) -> dict[str, Any]:
    """What codes depend on besides labels."""
    tensors = sha256_of(codec.decoder_tensors())
    return {"kind": codec.kind, "config": codec.config.to_dict(), "tensors": tensors, "effort": effort}


def sha256_of(tensors: Mapping[str, Any]) -> str:
    """Of names and bytes, by which a file says whose labels it has."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        if isinstance(tensor, torch.Tensor) and not tensor.is_quantized:
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:  # a quantised network's weights, a module's extra state
            torch.save(tensor, kept := io.BytesIO())
            total.update(kept.getvalue())
    return total.hexdigest()
