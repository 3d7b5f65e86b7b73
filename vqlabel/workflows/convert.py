"""A dump or a `.vql` -> a dump in another layout, batch by batch."""

from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.errors import UsageError
from vqlabel.labels import LabelSource, open_labels, writing
from vqlabel.labels.open import check_dump_target, output_layout
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.type_checks import check_argument_types


def open_any(
    path: str | PathLike[str],
    layout: str | None = None,
    domain: str | None = None,
    images: str | PathLike[str] | None = None,
    classes: int | None = None,
    dtype: str | None = None,
    class_map: str | PathLike[str] | None = None,
    array: str | None = None,
    axes: str | None = None,
) -> LabelSource:
    """A dump, see `open_labels`, or the labels of a `.vql`."""
    if Path(path).suffix != ".vql":
        if dtype is not None:
            raise UsageError(
                f"dtype {dtype!r}: labels of a dump are written as they are; only those of a .vql are decoded to a type"
            )
        return open_labels(path, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
    if layout or domain or images or classes or class_map or array or axes:
        raise UsageError(f"{path}: a .vql file records its layout, domain, classes, images and axes itself; name none")
    from vqlabel.vql.source import VqlSource

    return VqlSource(path, dtype=dtype)


@check_argument_types
def convert(
    source: str | PathLike[str] | LabelSource,
    out: str | PathLike[str],
    *,
    layout: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write a dump's labels, places and augmentation in another layout; it appears whole or not at all.

    Args:
        source: what `open_any` gives, or a path for it.
        layout: "sre2l", "lpqld:10", ...: one of `vqlabel.labels.LAYOUTS`, its form after a colon; None: as the name of `out` ends.

    Raises:
        UsageError: the layout cannot hold what the dump has, and why; or `storage.targets.AtomicTarget` or `storage.apart.check_apart` refuses the target.
        BadLabels: the dump is malformed, or changed while it was read; nothing is written.
        TargetExists: `out` is there and `overwrite` is false.
    """
    layout = output_layout(Path(out), layout)
    check_dump_target(out, layout, overwrite=overwrite)
    source = source if isinstance(source, LabelSource) else open_any(source)
    check_apart(out, *source.inputs)
    records = 0
    with writing(out, source.about, layout, overwrite=overwrite) as writer:
        for at, batch in enumerate(source):
            writer.add(batch)
            records += len(batch)
            progress("converting", at + 1, len(source), {})
        source.check_unchanged()
        if not records:
            raise UsageError(f"{source.path}: has no labels, so there is nothing to write")
    found = {"path": str(out), "layout": layout, "records": records, "classes": source.classes, "dtype": source.dtype.lower()}
    return {**found, **noted(writer.notes)}
