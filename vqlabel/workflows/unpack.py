"""A `.vql` -> its labels, decoded on any device, as an array or as a dump in any layout."""

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
    """Decode a `.vql` into a file or a folder; the complete target appears, or nothing.

    Args:
        out: a `.npy` or `.safetensors` file (tensor "logits" or "probs", [n, C]), or a file or folder of `layout`.
        layout: one of `vqlabel.labels.LAYOUTS`, with its form after a colon, such as "lpqld:10"; None: by the suffix of
            `out`, or else the layout of the dump.
        records: first record, and the one after the last; None: from the start, to the end. For `.npy` and
            `.safetensors` only.
        dtype: of the labels: "f16", "bf16" or "f32"; None: that of the dump.
        device: where labels are decoded.

    Returns:
        path, records, classes, dtype; notes, if there are any.

    Raises:
        UsageError: a range outside the file, an unknown suffix, bf16 in a .npy, a value outside the range of the dtype,
            a layout that cannot represent these labels or their augmentation; or `storage.targets.AtomicTarget` or
            `storage.apart.check_apart` refuses the target.
        TargetExists: `out` exists and `overwrite` is false.
        BadContainer: the `.vql` is damaged.
    """
    target = Path(out)
    source = VqlSource(path, dtype=dtype, device=device)
    file, (start, stop, _) = source.file, slice(*records).indices(source.file.records)
    if any(bound is not None and not -file.records <= bound <= file.records for bound in records) or start > stop:
        raise UsageError(f"records {records[0]}:{records[1]} are out of range; the file has records 0:{file.records}")
    layout = output_layout(target, layout, source.layout)
    check_apart(target, path)
    if not layout.startswith("arrays:"):
        all_records = (start, stop) == (0, file.records)
        require(
            all_records, "records", f"{start}:{stop}", "needs a .npy or .safetensors target: other layouts store complete batches"
        )
    with writing(target, source.about, layout, overwrite=overwrite) as writer:
        if isinstance(writer, ArrayWriter):
            for labels in decode_steps(file, source.codec, start, stop, device):
                writer.append(to_bytes(narrow(labels, source.torch_dtype, file, start + writer.rows)))
                progress("unpacking", writer.rows, stop - start, {})
        else:
            for index, batch in enumerate(source):
                writer.add(batch)
                progress("unpacking", index + 1, len(source), {})
    result = {"path": str(target), "records": stop - start, "classes": file.classes, "dtype": source.dtype.lower()}
    return {**result, **noted(writer.notes)}
