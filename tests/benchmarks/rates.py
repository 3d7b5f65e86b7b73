"""One fit at several rates, beside a fit at each of them alone: held-out KL in nats times T^2.

    python tests/benchmarks/rates.py DUMP [--bits 128] [--rates 8 16 32 64] [--temperature 20]

A row a rate and temperature: as `pack` writes labels, and calibrated (--contrast 1). The last epochs are held out, as `fit` does it.
"""

import argparse
from pathlib import Path

from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.config import FitConfig
from vqlabel.labels import open_labels
from vqlabel.workflows.fit import fit_sample
from vqlabel.workflows.fit_report import measure
from vqlabel.workflows.sample import read_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--bits", type=int, default=128)
    parser.add_argument("--rates", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    sample, held_out = read_sample(open_labels(options.dump))
    temperatures = tuple(options.temperature)

    def fitted(bits: int) -> VqaeCodec:
        codec, _ = fit_sample(sample, held_out, FitConfig(bits=bits, temperature=temperatures))
        assert isinstance(codec, VqaeCodec)
        return codec

    whole = fitted(options.bits)
    print(f"one fit at {options.bits} bits; held out: {held_out}")
    print("| bits | T | one fit | alone | ratio | calibrated: one fit | alone | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for bits in options.rates:
        part, alone = whole.prefix(bits // whole.config.code_bits), fitted(bits)
        pairs = [(part, alone), (part.calibrated(), alone.calibrated())]
        found = [[measure(codec, sample, "held", temperatures) for codec in pair] for pair in pairs]
        for t in temperatures:
            values = [[figures[f"kl_T{t:g}"] for figures in pair] for pair in found]
            cells = " | ".join(f"{one:.4f} | {other:.4f} | {one / other:.3f}" for one, other in values)
            print(f"| {bits} | {t:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
