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
    """Open a dump (see `open_labels`) or the labels of a `.vql`.

    Args:
        dtype: of the labels of a `.vql`: "f16", "bf16" or "f32"; None: that of its dump. Other arguments: see
            `open_labels`.

    Raises:
        UsageError: `dtype` for a dump, or another argument for a `.vql`, which records these properties itself.
        BadInput: the dump or the `.vql` is malformed.
    """
    if Path(path).suffix != ".vql":
        if dtype is not None:
            raise UsageError(f"dtype {dtype!r}: labels of a dump keep their dtype; only labels of a .vql can be decoded to another")
        return open_labels(path, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
    if layout or domain or images or classes or class_map or array or axes:
        raise UsageError(f"{path}: a .vql file records its layout, domain, classes, images and axes; leave these options out")
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
    """Write the labels, places and augmentation of a dump in another layout; the complete dump appears, or nothing.

    Args:
        source: a result of `open_any`, or a path for it.
        layout: one of `vqlabel.labels.LAYOUTS`, with its form after a colon, such as "sre2l" or "lpqld:10"; None: by
            the suffix of `out`.

    Returns:
        path, layout, records, classes, dtype; notes, if there are any.

    Raises:
        UsageError: the layout cannot represent the dump (the message has the reason); or `storage.targets.AtomicTarget`
            or `storage.apart.check_apart` refuses the target.
        BadLabels: the dump is malformed, or changed while it was read; nothing is written.
        TargetExists: `out` exists and `overwrite` is false.
    """
    layout = output_layout(Path(out), layout)
    check_dump_target(out, layout, overwrite=overwrite)
    source = source if isinstance(source, LabelSource) else open_any(source)
    check_apart(out, *source.inputs)
    records = 0
    with writing(out, source.about, layout, overwrite=overwrite) as writer:
        for index, batch in enumerate(source):
            writer.add(batch)
            records += len(batch)
            progress("converting", index + 1, len(source), {})
        source.check_unchanged()
        if not records:
            raise UsageError(f"{source.path}: has no labels, so there is nothing to write")
    result = {"path": str(out), "layout": layout, "records": records, "classes": source.classes, "dtype": source.dtype.lower()}
    return {**result, **noted(writer.notes)}
