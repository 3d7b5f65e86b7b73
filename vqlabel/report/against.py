"""A `.vql` held against a dump: distortion, calibration, and whether it is the dump that the file was packed from."""

import hashlib
import math
from os import PathLike
from typing import Any

import numpy as np
import torch

from vqlabel.config import MIX
from vqlabel.errors import UsageError
from vqlabel.labels import LabelSource, open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.progress import Progress, silent
from vqlabel.threads import large_operations
from vqlabel.vql.decode import DTYPES, decode_steps, narrow, read_codec
from vqlabel.vql.file import VqlFile

DIFFERS = 0.01  # share of a figure by which that of float32 labels is another; of figures below it, a share of it


@large_operations()
def compare(
    file: VqlFile, dump: str | PathLike[str] | LabelSource, *, device: str = "cpu", progress: Progress = silent
) -> dict[str, Any]:
    """Decode every label and compare it with the dump's, batch by batch, in the dump's type: what `unpack` writes.

    Returns:
        distortion: KL at T = 1, 4, 20, top-1 agreement, squared error: relative, of centred logits, and of the labels as they are; None
            for a figure that float32 cannot hold.
        distortion_f32: the same of labels before they are narrowed to that type (`vqlabel.open`), where that changes a figure by a hundredth.
        calibration: `Calibration.figures` at the codec's own temperatures; at 1 for a codec that was not fitted to any. Empty of sigmoid
            labels, which are no distributions.
        same_dump: are these the labels that the file was packed from, by their sha256? None where the file does not say.

    Raises:
        UsageError: the dump has another number of classes, records or another domain.
    """
    source = dump if isinstance(dump, LabelSource) else open_labels(dump, domain=file.label["domain"])
    pruned = file.pruned
    if pruned is not None and "pruned" not in source.details:  # what was kept of it
        source = Pruned(source, pruned["keep"], pruned["by"], pruned["seed"])
    where = file.container.path
    if source.classes != file.classes:
        raise UsageError(f"{source.path} has {source.classes} classes, {where} has {file.classes}: not the dump it was packed from")
    if source.domain != file.label["domain"]:
        raise UsageError(
            f"{source.path} holds {source.domain}, {where} holds {file.label['domain']}: not the dump it was packed from"
        )
    codec = read_codec(file).to(device)
    temperatures = codec.config.temperatures
    dtype, sigmoid = DTYPES[file.label["dtype"]], source.domain == "sigmoid"
    sets = codec.config.holds_sets or (source.support is not None and source.support.rest == "zero")
    measure, degrees = likelihood_of(source.domain).distortion, temperatures if sigmoid else MIX
    distortion, before = (measure(temperatures=degrees, domain=source.domain, sets=sets) for _ in range(2))
    calibration = None if sigmoid else Calibration(domain=source.domain, temperatures=temperatures)
    fingerprint, at = hashlib.sha256(), 0
    for done, batch in enumerate(source):
        if at + len(batch) > file.records:
            raise UsageError(f"{source.path} has more than the {file.records} records of {where}: not the dump it was packed from")
        fingerprint.update(batch.label_bytes())
        raw = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(device)
        for decoded in decode_steps(file, codec, at, at + len(batch), device):
            part, raw = raw.tensor_split([len(decoded)])
            written = narrow(decoded, dtype, file, at + len(batch) - len(raw) - len(part)).float()
            distortion.add(part, written)
            if calibration is not None:
                calibration.add(part, written)
            if dtype != torch.float32:
                before.add(part, decoded)
        at += len(batch)
        progress("comparing", done + 1, len(source), {})
    if at != file.records:
        raise UsageError(f"{source.path} has {at} records, {where} has {file.records}: not the dump it was packed from")
    packed_from = file.source.get("labels_sha256")
    figures = {name: round(value, 6) for name, value in distortion.figures().items()}
    wide = {name: round(value, 6) for name, value in before.figures().items()}
    differs = before.labels and any(abs(wide[name] - value) > DIFFERS * max(value, DIFFERS) for name, value in figures.items())
    return {
        "distortion": _finite(figures),
        **({"distortion_f32": _finite(wide)} if differs else {}),
        "calibration": {} if calibration is None else _shortened(calibration.figures()),
        "same_dump": None if packed_from is None else packed_from == fingerprint.hexdigest(),
    }


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _shortened(value: Any) -> Any:
    """Six digits that count: at T = 20 a probability among 1,000 has its first one in the third place."""
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
