"""Labels of k known numbers: codec `sparse` at several rates, `topk`, and what an entropy coder would make of topk's codes.

    python tests/benchmarks/sparse.py DUMP [--k 10] [--bits 115 145]

DUMP is of any layout; of labels that have all classes the k largest logits are kept, as LPQLD's MR-k keeps them. Bits and bytes are all-in, of a
file of these labels without augmentation and order. KL is over the known classes, in nats times T^2.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.labels import LabelBatch, LabelSource, Support, open_labels
from vqlabel.labels.source import NOWHERE
from vqlabel.labels.topk import scatter, topk
from vqlabel.metrics.distortion import Distortion
from vqlabel.report.baselines.entropy import Frequencies, bits_of_sets


class Largest(LabelSource):
    """A dump of logits, of which the k largest of each label are known."""

    def __init__(self, source: LabelSource, k: int) -> None:
        self.describe_as(source.about)
        self.path, self.places, self.order, self._source = source.path, source.places, "none", source
        self.support = source.support or Support(k=k, rest="zero")

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = self._source._load(at)
        ids, values = topk(batch.labels, self.support.k)  # type: ignore[union-attr]
        return LabelBatch(labels=scatter(ids, values, self.classes, name, NOWHERE), place=batch.place), name


def at_entropy(labels: Tensor, k: int, step: float | None) -> tuple[float, Tensor]:
    """Bits a label of class ids by their frequencies, none twice, and of values: fp16, or gaps between multiples of `step` by their rank;
    the tables of frequencies included. And the labels [n, C] that these give back."""
    values, ids = labels.float().topk(k, 1)
    table = Frequencies(ids.reshape(-1, 1), (0, labels.shape[1] - 1))
    bits, fixed = float(bits_of_sets(ids, table).double().sum()), 8.0 * table.bytes
    if step is None:
        bits += 16 * ids.numel()
    else:
        steps = ((values - values[:, :1]) / step).round().long()
        gaps = -steps.diff(dim=1)
        coded = Frequencies(gaps)
        bits, fixed, values = bits + float(coded.bits(gaps).double().sum()), fixed + 8.0 * coded.bytes, steps * step
    return (bits + fixed) / len(labels), torch.full(labels.shape, NOWHERE).scatter(1, ids, values)


def rows(source: LabelSource, k: int, rates: list[int]) -> Iterator[tuple[str, float, float, dict[str, float]]]:
    """Method, bits a label, bytes and figures."""
    named = [("sparse", FitConfig()), *((f"sparse, --bits {bits}", FitConfig(bits=bits)) for bits in rates)]
    with TemporaryDirectory() as folder:
        for title, config in [*named, ("topk", FitConfig(codec="topk"))]:
            out = Path(folder) / "labels.vql"
            vqlabel.pack(source, out, codec=vqlabel.fit(source, config)[0], overwrite=True)
            found = vqlabel.stats(out, against=source)
            bits = found["bits_per_label"]["labels"]
            yield title, bits, bits * found["records"] / 8, found["distortion"]
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in source]))
    for title, step in (("topk, ids at their entropy", None), ("and gaps at theirs, step 0.25", 0.25), ("the same, step 0.5", 0.5)):
        bits, decoded = at_entropy(labels, k, step)
        figures = Distortion(sets=True)
        figures.add(labels, decoded)
        yield title, bits, bits * len(labels) / 8, figures.figures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--bits", type=int, nargs="*", default=[115, 145])
    parser.add_argument("--classes", type=int)
    options = parser.parse_args()
    source = Largest(open_labels(options.dump, classes=options.classes), options.k)
    print("| method | bits a label | kB | KL T=1 | KL T=4 | KL T=20 | top-1 agreement % |\n" + "| --- " * 7 + "|")
    for title, bits, size, found in rows(source, options.k, options.bits):
        at_t = " | ".join(f"{found[f'kl_T{t}']:.4f}" for t in (1, 4, 20))
        print(f"| {title} | {bits:.1f} | {size / 1000:.0f} | {at_t} | {100 * found['top1_agreement']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
