"""Lower rates of one fit against separate fits at these rates: held-out KL in nats times T^2.

    python tests/benchmarks/rates.py DUMP [--bits 128] [--rates 8 16 32 64] [--temperature 20]

Prints a row per rate and temperature: of labels as `pack` writes them, and of calibrated labels (--gain 1). The
last epochs are held out, as in `fit`.
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

    def fit(bits: int) -> VqaeCodec:
        codec, _ = fit_sample(sample, held_out, FitConfig(bits=bits, temperature=temperatures))
        assert isinstance(codec, VqaeCodec)
        return codec

    nested = fit(options.bits)
    print(f"one fit at {options.bits} bits; held out: {held_out}")
    print("| bits | T | one fit | separate fit | ratio | calibrated: one fit | separate fit | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for bits in options.rates:
        lower, separate = nested.at_slots(bits // nested.config.code_bits), fit(bits)
        pairs = [(lower, separate), (lower.calibrated(), separate.calibrated())]
        figures = [[measure(codec, sample, "held_out", temperatures) for codec in pair] for pair in pairs]
        for t in temperatures:
            values = [[of_codec[f"kl_T{t:g}"] for of_codec in pair] for pair in figures]
            cells = " | ".join(f"{a:.4f} | {b:.4f} | {a / b:.3f}" for a, b in values)
            print(f"| {bits} | {t:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
