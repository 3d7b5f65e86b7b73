"""Size of labels at ImageNet's scale: a codec fitted to this dump, with the images and labels of a larger set.

    python tests/benchmarks/scale.py DUMP [--bits 8 16 32 128] [--images 10000] [--views 300] [--temperature 1]
        [--teacher-bytes N]

Every codec is fitted and packed; the size by formula is compared with the file of this dump, then computed for `images
* views` labels. Bits per label count the whole file except augmentation and order.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import vqlabel
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.sizes import file_bytes
from vqlabel.config import FitConfig
from vqlabel.report.published import RESNET18_FP16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 16, 32, 128])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--views", type=int, default=300)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--teacher-bytes", type=int, default=RESNET18_FP16)
    options = parser.parse_args()
    labels = options.images * options.views
    print(
        f"| code bits | this dump: labels | file, MB | by the formula | bits per label | held-out KL | {labels:,} labels: MB | bits per label |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for bits in options.bits:
        codec, report = vqlabel.fit(options.dump, FitConfig(bits=bits, temperature=tuple(options.temperature)))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "labels.vql"
            vqlabel.pack(options.dump, out, codec=codec)
            stats = vqlabel.stats(out)
        groups, records = stats["bytes"], stats["records"]
        written = groups["codes"] + groups["codec"] + groups["container"]
        formula = file_bytes(codec.config, records)
        scaled = file_bytes(at_scale(codec.config, options.images), labels)
        kl = report["held_out"][f"kl_T{options.temperature[0]:g}"]
        print(
            f"| {bits} | {records:,} | {written / 1e6:.2f} | {formula / 1e6:.2f} | {stats['bits_per_label']['labels']:.2f} | {kl:.3f} "
            f"| {scaled / 1e6:.2f} | {8 * scaled / labels:.2f} |",
            flush=True,
        )
    print(f"\nfp16: {2 * labels * codec.config.classes / 1e6:,.0f} MB; the teacher itself: {options.teacher_bytes / 1e6:.1f} MB")


def at_scale(config: VqaeConfig, images: int) -> VqaeConfig:
    """The same codec with image vectors for `images` images."""
    return config if config.prior is None else replace(config, prior=replace(config.prior, images=images))


if __name__ == "__main__":
    main()
