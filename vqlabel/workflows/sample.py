"""A dump -> the labels that a codec is fitted to, and those held out."""

from collections.abc import Callable

import numpy as np

from vqlabel.codecs import LabelSample
from vqlabel.errors import BadLabels
from vqlabel.labels import Context, LabelBatch, LabelSource
from vqlabel.labels.constant_rows import ConstantRows
from vqlabel.labels.sparse import concatenate
from vqlabel.progress import Progress, silent
from vqlabel.workflows.encode import describe_fit, to_tensors

SAMPLE_LABELS, SAMPLE_BYTES = (
    131_072,
    512 << 20,
)  # maximum of the training split, as labels and as float32; larger dumps are sampled by batch
HELD_OUT_LABELS = 8192  # maximum of the held-out split


def read_sample(source: LabelSource, progress: Progress = silent, min_labels: int = 2) -> tuple[LabelSample, str]:
    """Read a training split and a held-out split of a dump.

    With two epochs or more the last eighth of the epochs is held out; else the last tenth of the records. Both splits
    leave out labels with one value for all classes.

    Args:
        min_labels: minimum number of labels: 2, or 1 for a codec that is not trained; one label is then in both splits.

    Returns:
        The sample, and what was held out, in words.

    Raises:
        BadLabels: the dump is malformed, incomplete, or has fewer labels.
    """
    epochs = sorted({place.epoch for place in source.places})
    last = set(epochs[-max(1, len(epochs) // 8) :]) if len(epochs) > 1 else set()
    train_indices = [i for i, place in enumerate(source.places) if place.epoch not in last]
    held_out_indices = [i for i, place in enumerate(source.places) if place.epoch in last]
    max_labels = max(2, min(SAMPLE_LABELS, SAMPLE_BYTES // (4 * source.classes)))
    train = _read_some(source, train_indices, max_labels, lambda done, total: progress("reading", done, total, {}))
    held_out = _read_some(source, held_out_indices, min(HELD_OUT_LABELS, max_labels), lambda *_: None)
    source.check_unchanged()
    total = _estimated_labels(train, train_indices) + _estimated_labels(held_out, held_out_indices)
    constant = ConstantRows(path=source.path)
    train, held_out = ([_without_constant_rows(batch, constant) for batch in split] for split in (train, held_out))
    constant.check()
    if last:
        words = f"the last epoch ({min(last)})" if len(last) == 1 else f"the last {len(last)} epochs (from {min(last)})"
    else:
        train, held_out = _split_last_tenth(train)
        words = "the last tenth of the records"
    if not sum(map(len, train)) and min_labels == 1:
        train = held_out
    counts = [sum(map(len, split)) for split in (train, held_out)]
    if constant.rows < 2 and not all(counts):
        raise BadLabels(f"{source.path}: {constant.rows} labels; a fit needs at least 2")
    if not all(counts):
        raise BadLabels(
            f"{source.path}: {counts[0]} labels to fit to, {counts[1]} held out ({words}), without rows that have one value for all classes; a "
            "fit needs at least one of each"
        )
    return LabelSample(
        train=to_tensors(concatenate([batch.labels for batch in train])),
        held_out=to_tensors(concatenate([batch.labels for batch in held_out])),
        train_context=Context.join([b.context() for b in train]),
        held_out_context=Context.join([b.context() for b in held_out]),
        domain=source.domain,
        dtype=source.dtype,
        support=source.support,
        notes=tuple(constant.notes()),
        total=total,
        fitted_on=describe_fit(source),
    ), words


def _read_some(source: LabelSource, indices: list[int], max_labels: int, progress: Callable[[int, int], None]) -> list[LabelBatch]:
    """The batches at `indices`, or evenly spread ones with about `max_labels` labels."""
    if not indices:
        return []
    first = source.read(indices[0])
    count = max(1, min(len(indices), max_labels // len(first)))
    chosen = [indices[i * len(indices) // count] for i in range(count)]
    batches = []
    for done, index in enumerate(chosen):
        batches.append(first if index == indices[0] else source.read(index))
        progress(done + 1, count)
    return batches


def _estimated_labels(batches: list[LabelBatch], indices: list[int]) -> int:
    """Labels of the batches at `indices`, extrapolated from those that were read."""
    return round(sum(map(len, batches)) * len(indices) / len(batches)) if batches else 0


def _without_constant_rows(batch: LabelBatch, constant: ConstantRows) -> LabelBatch:
    """A batch without labels that have one value for all classes; they are counted in `constant`."""
    kept = constant.add(batch.labels)
    return batch if kept.all() else batch.rows(np.flatnonzero(kept))


def _split_last_tenth(batches: list[LabelBatch]) -> tuple[list[LabelBatch], list[LabelBatch]]:
    """(train, held_out): the last tenth of the records, at least one, is held out."""
    total = sum(map(len, batches))
    remaining = total - max(1, total // 10)  # records that still go to the training split
    train, held_out = [], []
    for batch in batches:
        cut = max(0, min(len(batch), remaining))
        remaining -= cut
        train += [_rows_without_partners(batch, 0, cut)] if cut else []
        held_out += [_rows_without_partners(batch, cut, len(batch))] if cut < len(batch) else []
    return train, held_out


def _rows_without_partners(batch: LabelBatch, start: int, stop: int) -> LabelBatch:
    """Records start:stop of a batch.

    Of a part of a batch only labels and images are kept: its mixing partners may be in the other part.
    """
    if (start, stop) == (0, len(batch)):
        return batch
    image = None if batch.image is None else batch.image[start:stop]
    return LabelBatch(labels=batch.labels[start:stop], place=batch.place, image=image)
