"""Top-k labels of a language model in the codec `sparse`: bits per label and KL of the teacher, on other sequences.

    python tests/benchmarks/text_topk.py [--teacher sharp] [--k 39 50]

Needs the teachers of shared/data/lm beside the checkout. The codec is fitted to the k likeliest tokens of every fourth
of sequences 1128-2900, and scored on sequences 128-1127, every sixteenth; the labels have a uniform tail. Bits are
those of codes, entropy-coded. "Lists" are those of a dump of 10^7 labels: tokens that often occur together, whose ids
become short ranks; their bytes, divided by as many labels, are included.
"""

import argparse
import sys

import torch
from text_students import SCORE, TEACHERS, Corpus, load

from vqlabel.codecs.fit import fit_codec
from vqlabel.codecs.sample import LabelSample
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.config import FitConfig
from vqlabel.labels import Support
from vqlabel.labels.sparse import SparseLabels
from vqlabel.metrics.factored import chunk_rows
from vqlabel.metrics.token_distortion import TokenDistortion

FIT, LISTED = slice(1128, 2900, 4), 10**7


def top_k(corpus: Corpus, k: int) -> SparseLabels:
    """The k likeliest tokens of all labels; the others share the rest."""
    ids, values = list[torch.Tensor](), list[torch.Tensor]()
    vocabulary = corpus.labels.shape[1]
    for start in range(0, len(corpus.labels), size := chunk_rows(vocabulary)):
        largest = corpus.labels.probs(slice(start, start + size)).topk(k, 1)
        ids.append(largest.indices)
        values.append(largest.values)
    known = torch.cat(values)
    rest = (1 - known.sum(1, keepdim=True)).clamp_min(0) / (vocabulary - k)
    return SparseLabels(ids=torch.cat(ids), values=known, rest=rest, classes=vocabulary)


def measure(codec: SparseCodec, labels: SparseLabels, corpus: Corpus) -> tuple[float, float]:
    """Bits per label, and KL(teacher || decoded)."""
    codes, distortion = codec.encode(labels), TokenDistortion()
    for start in range(0, len(labels), size := chunk_rows(labels.shape[1])):
        part = slice(start, start + size)
        distortion.add(corpus.labels.probs(part), codec.decode_sparse(codes[part]).as_dense())
    return codec.stored_bits(codes) / len(labels), distortion.figures()["kl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="sharp")
    parser.add_argument("--k", nargs="+", type=int, default=[39, 50])
    options = parser.parse_args()
    if not TEACHERS.exists():
        print(f"skipped: {TEACHERS} is absent")
        return
    train, scored = load(options.teacher, FIT), load(options.teacher, SCORE)
    print("| k | KL | bits per label | with lists |")
    for k in options.k:
        labels, rates = top_k(scored, k), list[float]()
        for total in (len(train.labels), LISTED):
            sample = LabelSample(
                train=top_k(train, k), held_out=labels, train_context=None, held_out_context=None, domain="probs", dtype="F32",
                support=Support(k=k, rest="uniform"), total=total,
            )  # fmt: skip
            codec = fit_codec(sample, FitConfig())
            assert isinstance(codec, SparseCodec)
            bits, kl = measure(codec, labels, scored)
            rates.append(bits + 8 * sum(tensor.nbytes for tensor in codec.decoder_tensors().values()) / total)
            print(f"k = {k}, {total:,} labels: {rates[-1]:.1f} bits", file=sys.stderr, flush=True)
        print(f"| {k} | {kl:.3f} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
