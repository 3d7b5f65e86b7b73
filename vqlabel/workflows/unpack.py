"""`.vql` -> labels: batches on any device, or a file or tree in a layout that others read."""

from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.errors import UsageError, require
from vqlabel.labels import writing
from vqlabel.labels.layouts.arrays import ArrayWriter
from vqlabel.labels.open import output_layout
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.decode import decode_steps, narrow, to_bytes
from vqlabel.vql.source import VqlSource


@large_operations()
@check_argument_types
def unpack(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    layout: str | None = None,
    records: tuple[int | None, int | None] = (None, None),
    dtype: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Decode a `.vql` into a file or a tree; it appears whole or not at all.

    Args:
        out: `.npy` or `.safetensors` (tensor "logits" or "probs", [n, C]), or what `layout` writes.
        layout: one that `vqlabel.labels.LAYOUTS` names, with its form after a colon, such as "lpqld:10"; None: as `out` ends, or the layout
            that the labels came in.
        records: first record and the one after the last; None: from the start, to the end. Files only.
        dtype: "f16", "bf16" or "f32"; None: the dump's.

    Raises:
        UsageError: a range outside the file, an unknown suffix, bf16 in a .npy, a value that f16 (bf16) cannot hold, a layout that cannot
            hold these labels or their augmentation; or a target that `storage.targets.AtomicTarget` or `storage.apart.check_apart` refuses.
        TargetExists: `out` is there and `overwrite` is false.
        BadContainer: the `.vql` is damaged.
    """
    target = Path(out)
    source = VqlSource(path, dtype=dtype, device=device)
    file, (start, stop, _) = source.file, slice(*records).indices(source.file.records)
    if any(r is not None and not -file.records <= r <= file.records for r in records) or start > stop:
        raise UsageError(f"records {records[0]}:{records[1]} leave 0:{file.records}")
    layout = output_layout(target, layout, source.layout)
    check_apart(target, path)
    if not layout.startswith("arrays:"):
        whole = (start, stop) == (0, file.records)
        require(whole, "records", f"{start}:{stop}", "needs a .npy or .safetensors target: other layouts have whole batches")
    with writing(target, source.about, layout, overwrite=overwrite) as writer:
        if isinstance(writer, ArrayWriter):
            for labels in decode_steps(file, source.codec, start, stop, device):
                writer.append(to_bytes(narrow(labels, source.torch_dtype, file, start + writer.rows)))
                progress("unpacking", writer.rows, stop - start, {})
        else:
            for at, batch in enumerate(source):
                writer.add(batch)
                progress("unpacking", at + 1, len(source), {})
    found = {"path": str(target), "records": stop - start, "classes": file.classes, "dtype": source.dtype.lower()}
    return {**found, **noted(writer.notes)}
