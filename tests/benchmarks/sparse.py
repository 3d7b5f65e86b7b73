"""Labels of k known classes: codec `sparse` at several rates, `topk`, and the entropy of topk's codes.

    python tests/benchmarks/sparse.py DUMP [--k 10] [--bits 115 145]

DUMP has any layout; the k largest logits of dense labels are kept, as in LPQLD's MR-k. Bits and bytes count the whole
file of these labels except augmentation and order. KL is over the known classes, in nats times T^2.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.labels import LabelBatch, LabelSource, Support, open_labels
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.sparse import as_dense
from vqlabel.labels.topk import sparse_labels, topk
from vqlabel.metrics.distortion import Distortion
from vqlabel.report.baselines.entropy import Frequencies, bits_of_distinct


class Largest(LabelSource):
    """A dump of logits, reduced to the k largest of each label."""

    def __init__(self, source: LabelSource, k: int) -> None:
        self.path, self.places, self._source = source.path, source.places, source
        self.about = replace(source.about, order="none", support=source.support or Support(k=k, rest="zero"))

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = self._source._load(at)
        ids, values = topk(batch.labels, self.support.k)  # type: ignore[union-attr]
        return LabelBatch(labels=sparse_labels(ids, values, self.classes, name, NOWHERE), place=batch.place), name


def at_entropy(labels: Tensor, k: int, step: float | None) -> tuple[float, Tensor]:
    """Bits per label, frequency tables included, and the decoded labels [n, C].

    Class ids are coded by frequency, each id once per label; values as fp16, or as differences of multiples of `step`,
    by rank.
    """
    values, ids = labels.float().topk(k, 1)
    table = Frequencies(ids.reshape(-1, 1), (0, labels.shape[1] - 1))
    bits, fixed = float(bits_of_distinct(ids, table).double().sum()), 8.0 * table.bytes
    if step is None:
        bits += 16 * ids.numel()
    else:
        steps = ((values - values[:, :1]) / step).round().long()
        differences = -steps.diff(dim=1)
        model = Frequencies(differences)
        bits, fixed, values = bits + float(model.bits(differences).double().sum()), fixed + 8.0 * model.bytes, steps * step
    return (bits + fixed) / len(labels), torch.full(labels.shape, NOWHERE).scatter(1, ids, values)


def rows(source: LabelSource, k: int, rates: list[int]) -> Iterator[tuple[str, float, float, dict[str, float]]]:
    """Method, bits per label, bytes and distortion."""
    codecs = [("sparse", FitConfig()), *((f"sparse, --bits {bits}", FitConfig(bits=bits)) for bits in rates)]
    with TemporaryDirectory() as folder:
        for title, config in [*codecs, ("topk", FitConfig(codec="topk"))]:
            out = Path(folder) / "labels.vql"
            vqlabel.pack(source, out, codec=vqlabel.fit(source, config)[0], overwrite=True)
            stats = vqlabel.stats(out, against=source)
            bits = stats["bits_per_label"]["labels"]
            yield title, bits, bits * stats["records"] / 8, stats["distortion"]
    labels = torch.from_numpy(np.concatenate([as_dense(batch.labels) for batch in source]))
    for title, step in (
        ("topk, ids at their entropy, fp16 values", None),
        ("topk, ids and values of step 0.25 at their entropy", 0.25),
        ("topk, ids and values of step 0.5 at their entropy", 0.5),
    ):
        bits, decoded = at_entropy(labels, k, step)
        distortion = Distortion(sets=True)
        distortion.add(labels, decoded)
        yield title, bits, bits * len(labels) / 8, distortion.figures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--bits", type=int, nargs="*", default=[115, 145])
    parser.add_argument("--classes", type=int)
    options = parser.parse_args()
    source = Largest(open_labels(options.dump, classes=options.classes), options.k)
    print("| method | bits per label | kB | KL T=1 | KL T=4 | KL T=20 | top-1 agreement % |\n" + "| --- " * 7 + "|")
    for title, bits, size, figures in rows(source, options.k, options.bits):
        kls = " | ".join(f"{figures[f'kl_T{t}']:.4f}" for t in (1, 4, 20))
        print(f"| {title} | {bits:.1f} | {size / 1000:.0f} | {kls} | {100 * figures['top1_agreement']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
