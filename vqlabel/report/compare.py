"""A `.vql` held against the dump it came from: KL at T = 1, 4, 20, top-1 agreement, relative squared error."""

from os import PathLike

import numpy as np
import torch

from vqlabel.codecs import Distortion
from vqlabel.errors import UsageError
from vqlabel.labels import LabelSource, open_labels
from vqlabel.progress import Progress, silent
from vqlabel.unpacking import decode_steps, read_codec
from vqlabel.vql import VqlFile


def distortion_against(
    file: VqlFile, dump: str | PathLike[str] | LabelSource, *, device: str = "cpu", progress: Progress = silent
) -> dict[str, float]:
    """Decode every label and compare it with the dump's, batch by batch.

    Raises:
        UsageError: the dump has another number of classes, records or another domain.
    """
    source = dump if isinstance(dump, LabelSource) else open_labels(dump, domain=file.label["domain"])
    where = file.container.path
    if source.classes != file.classes:
        raise UsageError(f"{source.path} has {source.classes} classes, {where} has {file.classes}: not the dump it was packed from")
    if source.domain != file.label["domain"]:
        raise UsageError(
            f"{source.path} holds {source.domain}, {where} holds {file.label['domain']}: not the dump it was packed from"
        )
    codec = read_codec(file).to(device)
    figures, at = Distortion(domain=file.label["domain"]), 0
    for done, batch in enumerate(source):
        if at + len(batch) > file.records:
            raise UsageError(f"{source.path} has more than the {file.records} records of {where}: not the dump it was packed from")
        raw = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(device)
        decoded = torch.cat(list(decode_steps(file, codec, at, at + len(batch), device)))
        figures.add(raw, decoded)
        at += len(batch)
        progress("comparing", done + 1, len(source), {})
    if at != file.records:
        raise UsageError(f"{source.path} has {at} records, {where} has {file.records}: not the dump it was packed from")
    return {name: round(value, 6) for name, value in figures.figures().items()}
