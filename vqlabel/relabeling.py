"""Images and a teacher -> the labels of every view that a recipe draws, as codes, never more of them dense than a batch."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqlabel.augment.pictures import Pictures
from vqlabel.augment.recipe import DrawnColumns, Recipe
from vqlabel.augment.views import views
from vqlabel.bitstream import narrowest
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.raw import RawCodec
from vqlabel.config import RawConfig
from vqlabel.container import ContainerWriter
from vqlabel.converting import convert
from vqlabel.errors import UsageError, VqlabelError, require
from vqlabel.files import check_target
from vqlabel.journal import Journal
from vqlabel.labels import LabelBatch, LabelSource
from vqlabel.packing import check_codec, finish, lent, store_codes
from vqlabel.progress import Progress, silent
from vqlabel.seeded import digest, recipe_file, write_drawn, write_recipe
from vqlabel.teachers import Teacher

DTYPES = {"F16": np.float16, "F32": np.float32}


class TeacherSource(LabelSource):
    """Labels that are made when they are read.

    Args:
        dtype: "F16" or "F32".

    Raises:
        UsageError: the teacher gives no logits for views of this size.
    """

    layout, domain, order = "relabel", "logits", "explicit"

    def __init__(self, pictures: Pictures, teacher: Teacher, recipe: Recipe, *, dtype: str = "F16", device: str = "cpu") -> None:
        require(dtype in DTYPES, "dtype", dtype.lower(), "must be f16 or f32")
        self.path, self.dtype = pictures.folder, dtype
        sizes = pictures.sizes()
        self.drawn = DrawnColumns(recipe, sizes[:1] if (sizes == sizes[0]).all() else sizes)
        self.places = self.drawn.places
        self.teacher, self._pictures, self._device = teacher.to(device), pictures, device
        self.classes = self.teacher(torch.zeros(1, 3, recipe.view, recipe.view, device=device)).shape[1]

    def read_from(self, first: int) -> Iterator[LabelBatch]:
        """The batches from number `first` on; views of the next one are drawn while the teacher looks at these."""
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] | None = pool.submit(self._views, first) if first < len(self) else None
            for at in range(first, len(self)):
                assert ahead is not None
                seen = ahead.result()
                ahead = pool.submit(self._views, at + 1) if at + 1 < len(self) else None
                yield self._labelled(at, seen)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        return self._labelled(at, self._views(at)), f"the teacher's labels of batch {at}"

    def _views(self, at: int) -> torch.Tensor:
        """[n, 3, view, view] float32 in 0..1."""
        seen = torch.from_numpy(views(self._pictures, self.drawn.batch(at, np.empty((0, 0), np.float32)), self.drawn.recipe.view))
        return seen.permute(0, 3, 1, 2) / 255 if seen.dtype == torch.uint8 else seen.permute(0, 3, 1, 2)

    def _labelled(self, at: int, seen: torch.Tensor) -> LabelBatch:
        labels = self.teacher(seen.to(self._device)).cpu().numpy().astype(DTYPES[self.dtype])
        if not np.isfinite(labels).all():
            raise VqlabelError(f"teacher {self.teacher.name}: gives a logit that {self.dtype.lower()} cannot hold; try --dtype f32")
        return self.drawn.batch(at, labels)


def relabel(
    source: TeacherSource,
    out: str | PathLike[str],
    *,
    codec: LabelCodec | None = None,
    layout: str | None = None,
    effort: str = "normal",
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Label every view of a recipe, into a `.vql` or a dump. Interrupted, even by kill -9, it goes on where it was, to the same bytes.

    Args:
        out: a `.vql`, whose views are its recipe's, at 0 bits a label; or what `layout` writes, with the recipe in a file beside it.
        codec: a fitted codec for a `.vql`; None: labels as they are.

    Raises:
        UsageError: the codec is for other labels; an interrupted run left something of other settings.
        TargetExists: `out` is there and `overwrite` is false.
    """
    target = Path(out)
    check_target(target, overwrite)
    whole = codec or RawCodec(RawConfig(classes=source.classes, domain="logits", dtype=source.dtype))
    if target.suffix == ".vql":
        return _into_vql(source, target, whole, effort, device, overwrite, progress)
    if codec is not None:
        raise UsageError(f"{out}: codes go into a .vql file; name one, or leave the codec out to write a dump")
    dense = target.with_name(target.name + ".raw.vql")
    if not dense.exists():
        _into_vql(source, dense, whole, effort, device, False, progress)
    found = convert(dense, target, layout=layout, overwrite=overwrite, progress=progress)
    write_recipe(recipe_file(target), source.drawn)
    dense.unlink()
    return found


def _into_vql(
    source: TeacherSource,
    target: Path,
    codec: LabelCodec,
    effort: str,
    device: str,
    overwrite: bool,
    progress: Progress,
) -> dict[str, Any]:
    check_codec(codec, source)
    made_by = {"teacher": source.teacher.name, "teacher_sha256": sha256_of(source.teacher.network.state_dict())}
    coded_by = {
        "kind": codec.kind,
        "config": codec.config.to_dict(),
        "tensors": sha256_of(codec.decoder_tensors()),
        "effort": effort,
    }
    views_of = {"recipe": source.drawn.recipe.to_dict(), "digest": digest(source.drawn)}
    sizes, kind = np.diff(source.drawn.starts).tolist(), narrowest(codec.code_bits).name
    path, key = target.with_name(target.name + ".journal"), {**made_by, **coded_by, **views_of}
    with lent(codec, effort, device), Journal(path, key, sizes, max(1, len(codec.code_bits)), kind) as journal:
        for batch in source.read_from(journal.done):
            with torch.inference_mode():
                codes = codec.encode(torch.from_numpy(batch.labels).to(device), batch.context() if codec.uses_context else None)
            rows = codes.cpu().numpy().view(np.uint32)
            journal.append(rows if rows.shape[1] else np.zeros((len(rows), 1), np.uint32))
            progress("labelling", journal.done, len(source), {})
        with ContainerWriter(target, overwrite=overwrite) as writer:
            records = store_codes(writer, codec, (rows.astype(np.uint32) for rows in journal))
            says = write_drawn(writer, source.drawn, source.places)
            size = finish(writer, codec, source, says, made_by)
        journal.remove()
    return {"path": str(target), "records": records, "classes": source.classes, "bytes": size, "code_bits": sum(codec.code_bits)}


def sha256_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and bytes, by which a file says whose labels it has."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
