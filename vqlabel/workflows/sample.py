"""A dump -> the labels that a fit works on, and those held out."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vqlabel.codecs import LabelSample
from vqlabel.errors import BadLabels
from vqlabel.labels import Context, LabelBatch, LabelSource
from vqlabel.labels.constant_rows import ConstantRows
from vqlabel.progress import Progress, silent
from vqlabel.workflows.encode import describe_fit

SAMPLE_LABELS, SAMPLE_BYTES = 131_072, 512 << 20  # what a fit looks at, at most; a larger dump is sampled by batches
HELD_LABELS = 8192


def read_sample(source: LabelSource, progress: Progress = silent, least: int = 2) -> tuple[LabelSample, str]:
    """The labels that a fit sees and those it is judged by, and what was held out, in words.

    With two epochs or more the last eighth of the epochs is held out; else the last tenth of the records. Rows that are the same for all
    classes are left out of both.

    Args:
        least: labels that are needed: 2, or 1 for a codec that fits nothing, which then sees the label that it is judged by.

    Raises:
        BadLabels: the dump is malformed, was never finished, or has fewer labels.
    """
    epochs = sorted({place.epoch for place in source.places})
    last = set(epochs[-max(1, len(epochs) // 8) :]) if len(epochs) > 1 else set()
    seen_at = [i for i, place in enumerate(source.places) if place.epoch not in last]
    held_at = [i for i, place in enumerate(source.places) if place.epoch in last]
    most = max(2, min(SAMPLE_LABELS, SAMPLE_BYTES // (4 * source.classes)))
    seen = _read_some(source, seen_at, most, lambda done, total: progress("reading", done, total, {}))
    held = _read_some(source, held_at, min(HELD_LABELS, most), lambda *_: None)
    source.check_unchanged()
    total = sum(round(sum(map(len, part)) * len(at) / len(part)) for part, at in ((seen, seen_at), (held, held_at)) if part)
    flat = ConstantRows(path=source.path)
    seen, held = ([_telling(batch, flat) for batch in part] for part in (seen, held))
    flat.check()
    if last:
        first, many = min(last), len(last)
        words = f"the last epoch ({first})" if many == 1 else f"the last {many} epochs (from {first})"
    else:
        seen, held = _split_last_tenth(seen)
        words = "the last tenth of the records"
    if not sum(map(len, seen)) and least == 1:
        seen = held
    count = [sum(map(len, part)) for part in (seen, held)]
    if flat.rows < 2 and not all(count):
        raise BadLabels(f"{source.path}: {flat.rows} labels; a fit needs at least 2")
    if not all(count):
        raise BadLabels(
            f"{source.path}: {count[0]} labels to fit to, {count[1]} held out ({words}), rows of one number for all classes left out; a fit "
            "needs at least one of each"
        )
    return LabelSample(
        seen=_stack(seen),
        held=_stack(held),
        seen_context=Context.join([b.context() for b in seen]),
        held_context=Context.join([b.context() for b in held]),
        domain=source.domain,
        dtype=source.dtype,
        support=source.support,
        notes=tuple(flat.notes()),
        total=total,
        fitted_on=describe_fit(source),
    ), words


def _read_some(source: LabelSource, places: list[int], most: int, progress: Callable[[int, int], None]) -> list[LabelBatch]:
    """All batches at `places`, or as many, evenly spread, as hold about `most` labels."""
    if not places:
        return []
    first = source.read(places[0])
    keep = max(1, min(len(places), most // len(first)))
    chosen = [places[i * len(places) // keep] for i in range(keep)]
    batches = []
    for done, at in enumerate(chosen):
        batches.append(first if at == places[0] else source.read(at))
        progress(done + 1, keep)
    return batches


def _telling(batch: LabelBatch, flat: ConstantRows) -> LabelBatch:
    """A batch without its flat rows."""
    telling = flat.add(batch.labels)
    return batch if telling.all() else batch.rows(np.flatnonzero(telling))


def _split_last_tenth(batches: list[LabelBatch]) -> tuple[list[LabelBatch], list[LabelBatch]]:
    total = sum(map(len, batches))
    rest = total - max(1, total // 10)
    seen, held = [], []
    for batch in batches:
        cut = max(0, min(len(batch), rest))
        rest -= cut
        seen += [_plain(batch, 0, cut)] if cut else []
        held += [_plain(batch, cut, len(batch))] if cut < len(batch) else []
    return seen, held


def _plain(batch: LabelBatch, start: int, stop: int) -> LabelBatch:
    """Records start:stop of a batch. Mixing partners may lie outside, so a part of a batch is a record without them."""
    if (start, stop) == (0, len(batch)):
        return batch
    image = None if batch.image is None else batch.image[start:stop]
    return LabelBatch(labels=batch.labels[start:stop], place=batch.place, image=image)


def _stack(batches: list[LabelBatch]) -> Tensor:
    return torch.from_numpy(np.concatenate([batch.labels for batch in batches]))
