"""KL of a language model's labels by bits per label, held out: the codec fitted on other sequences, and the peers.

    python tests/benchmarks/text_rates.py [--teachers sharp flat] [--bits 64] [--save FOLDER] [--peers]

Needs the teachers of shared/data/lm beside the checkout. The codec is fitted on sequences 1128-2999 of 128 labels and
scored on 63 sequences spread over 128-1127; --bits is what it is fitted for, and it is scored at all of BITS. Bits are
those of codes, ids and the entropy of counts; the all-in columns add the codec, with and without its output map,
divided by 10^7 and 10^9 labels. --save keeps each codec as FOLDER/TEACHER.safetensors, for text_students.py.
"""

import argparse
import sys
from pathlib import Path

from text_students import LENGTH, SCORE, TEACHERS, load

from vqlabel.codecs.file import save_codec
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_of, rate_at
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.config import TextFitConfig
from vqlabel.report.text.measure import measure_peers
from vqlabel.report.text.peers import text_peers
from vqlabel.workflows.text.fit import fit_sample

FIT, HELD = slice(1128, 2900), slice(2900, 3000)  # sequences that are fitted to, and those by which a fit stops
BITS = (4, 8, 16, 20, 24, 28, 32, 48, 64, 80, 96, 112)
LABELS = (10**7, 10**9)


def split(teacher: str, sequences: slice) -> TextSplit:
    """Sequences with their labels."""
    corpus = load(teacher, sequences)
    return TextSplit(documents=corpus.documents, labels=corpus.labels)


def fixed_bytes(codec: TokenVqae) -> tuple[int, int]:
    """Bytes of the codec with its output map, and without."""
    sizes = {name: tensor.nbytes for name, tensor in codec.decoder_tensors().items()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if not name.startswith("decoder.out"))


def measure(teacher: str, bits: float, save: Path | None, peers: bool) -> None:
    """Fit, score and print one teacher."""
    sample = TextSample(train=split(teacher, FIT), held_out=split(teacher, HELD))

    def progress(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if done % 200 == 0 or done == total:
            print(f"{teacher}: {stage} {done}/{total} {figures}", file=sys.stderr, flush=True)

    codec, report = fit_sample(sample, TextFitConfig(bits=bits), progress=progress)
    if save is not None:
        save_codec(codec, save / f"{teacher}.safetensors", report, overwrite=True)
    scored = split(teacher, SCORE)
    choices = codec.choices(scored.labels, scored.documents)
    embedded, referenced = fixed_bytes(codec)
    print(f"\n{teacher}: fitted for {bits:g} bits, {len(scored.labels):,} labels of {LENGTH} a sequence")
    print("| bits | KL | codes | ids | " + " | ".join(f"all-in, {n:.0e} labels: embedded, by reference" for n in LABELS) + " |")
    for target in BITS:
        rate = rate_at(choices, codec.config, price_of(choices, codec.config, target))
        all_in = [f"{rate.bits + 8 * embedded / n:.1f}, {rate.bits + 8 * referenced / n:.1f}" for n in LABELS]
        print(f"| {rate.bits:.1f} | {rate.kl:.4f} | {rate.slots:.2f} | {rate.ids:.2f} | " + " | ".join(all_in) + " |")
    if peers:
        for name, figures in measure_peers(text_peers(scored.labels.shape[1], scored.labels.head), scored.labels).items():
            print(f"| {name} | {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=["sharp", "flat"])
    parser.add_argument("--bits", type=float, default=64)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    if not TEACHERS.exists():
        print(f"skipped: {TEACHERS} is absent")
        return
    for teacher in options.teachers:
        measure(teacher, options.bits, options.save, options.peers)


if __name__ == "__main__":
    main()
