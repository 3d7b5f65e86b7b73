"""A few labels of a file beside those of the dump: the largest classes of each, as JSON."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqlabel.labels import LabelSource
from vqlabel.labels.sparse import as_dense
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.vql.decode import decode_steps, read_codec
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.encode import to_tensors

CLASSES = 8  # of a label, by the teacher's probability


def top_classes(raw: Tensor, decoded: Tensor, name: str, domain: str = "logits") -> dict[str, Any]:
    """The teacher's likeliest classes of one label.

    Args:
        raw, decoded: [C] in the domain.

    Returns:
        name; classes, their probabilities `teacher` and `decoded` at T = 1.
    """
    probabilities = likelihood_of(domain).probabilities
    p, q = (probabilities(as_logits(labels[None], domain))[0] for labels in (raw, decoded))
    values, classes = p.topk(min(CLASSES, len(p)))
    return {"name": name, "classes": classes.tolist(), "teacher": values.tolist(), "decoded": q[classes].tolist()}


@torch.inference_mode()
def sample_labels(file: VqlFile, source: LabelSource, count: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Labels of batches that are spread over a dump with as many records as the file: the first label of each."""
    codec = read_codec(file).to(device)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()
    samples, start = [], 0
    for number, batch in enumerate(source):
        if number in chosen and start < file.records:
            raw = to_tensors(batch.labels[:1], device)
            decoded = next(iter(decode_steps(file, codec, start, start + 1, device)))
            dense = raw if isinstance(raw, Tensor) else torch.as_tensor(as_dense(batch.labels[:1]))
            place = f"record {start:,}, epoch {batch.place.epoch}"
            samples.append(top_classes(dense[0], decoded[0], place, file.label["domain"]))
        start += len(batch)
    return samples
