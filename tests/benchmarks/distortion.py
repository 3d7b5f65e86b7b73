"""Held-out distortion: codecs and baselines fitted to the first epochs of a dump and measured on the last.

    python tests/benchmarks/distortion.py DUMP [--held-epochs 8] [--bits 32 64 128] [--temperature 1]
        [--effort normal] [--baselines rq topk]
        [--gain 1] [--exact-classes auto] [--variable-rate]

DUMP is SRe2L's tree of logits. Prints a Markdown table of labels as `pack` writes them, of calibrated ones (gain 1) and
of baselines: code bits (without decoder and codebooks, for every method), the bytes of these fixed parts, and KL in
nats times T^2. At a variable rate, code bits are those of the last epochs, counts included.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import vqlabel
from vqlabel.cli.parse import read_exact_classes
from vqlabel.codecs import LabelCodec
from vqlabel.config import DEFAULT_TEMPERATURE, FitConfig
from vqlabel.labels import Context, open_labels
from vqlabel.labels.layouts.tree import ORDER_FILE, find_batches
from vqlabel.metrics.distortion import Distortion

# code bits per label that was decoded, fixed bytes, labels and context -> decoded labels
Method = tuple[Callable[[], float], int, Callable[[Tensor, Context], Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--held-epochs", type=int, default=8)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--temperature", type=float, nargs="+", default=DEFAULT_TEMPERATURE, help="that vqae is fitted for")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--exact-classes", default="0", help="number of exact classes, or auto")
    parser.add_argument("--variable-rate", action="store_true", help="variable rate: --bits is the average per label")
    parser.add_argument("--gain", type=float, help="of vqae's labels; 1: calibrated labels, which have the least KL")
    parser.add_argument("--baselines", nargs="*", default=["rq", "topk"])
    options = parser.parse_args()
    print("| method | code bits | fixed parts, kB | KL T=1 | KL T=4 | KL T=20 | top-1 agreement % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = split(options.dump, options.held_epochs, Path(folder))
        for bits in options.bits:
            for name, (code_bits, fixed, decode) in methods(train, bits, options):
                distortion = Distortion()
                for batch in open_labels(held_out):
                    labels = torch.from_numpy(batch.labels).float()
                    distortion.add(labels, decode(labels, batch.context()))
                figures = distortion.figures()
                kl = " | ".join(f"{figures[f'kl_T{t}']:.3f}" for t in (1, 4, 20))
                print(
                    f"| {name} | {code_bits():.4g} | {fixed / 1e3:.0f} | {kl} | {100 * figures['top1_agreement']:.1f} |", flush=True
                )


def split(dump: Path, held_epochs: int, folder: Path) -> tuple[Path, Path]:
    """Two trees of links: all epochs but the last `held_epochs`, and the last `held_epochs`."""
    epochs = sorted({place.epoch for place in find_batches(dump)})
    for name, part in (("train", epochs[:-held_epochs]), ("held_out", epochs[-held_epochs:])):
        (folder / name).mkdir()
        for epoch in part:
            (folder / name / f"epoch_{epoch}").symlink_to((dump / f"epoch_{epoch}").resolve())
        if (dump / ORDER_FILE).exists():
            (folder / name / ORDER_FILE).symlink_to((dump / ORDER_FILE).resolve())
    return folder / "train", folder / "held_out"


def methods(train: Path, bits: int, options: argparse.Namespace) -> list[tuple[str, Method]]:
    codec, _ = vqlabel.fit(
        train,
        FitConfig(
            bits=bits, temperature=tuple(options.temperature), gain=options.gain, exact_classes=read_exact_classes(options.exact_classes),
            variable_rate=options.variable_rate,
        ),
    )  # fmt: skip
    codec.set_effort(options.effort)
    fitted = [("vqae", codec_method(codec))]
    if options.gain is None:
        fitted.append(("vqae, --gain 1", codec_method(codec.calibrated())))
    if "rq" in options.baselines:
        fitted.append(("PCA + RQ (faiss)", faiss_rq(train, bits)))
    if "topk" in options.baselines:
        codec, _ = vqlabel.fit(train, FitConfig(codec="topk", bits=bits))
        fitted.append(("top-k, flat tail", flat_tail(codec)))
    return fitted


@torch.inference_mode()
def codec_method(codec: LabelCodec) -> Method:
    fixed = sum(tensor.nbytes for tensor in codec.decoder_tensors().values())
    coded: list[Tensor] = []

    @torch.inference_mode()
    def decode(labels: Tensor, context: Context) -> Tensor:
        coded.append(codec.encode(labels, context))
        return codec.decode(coded[-1], context)

    return lambda: codec.stored_bits(codes := torch.cat(coded)) / len(codes), fixed, decode


def flat_tail(codec: LabelCodec) -> Method:
    """Top-k with the mean logit for all other classes; with probability 0, as in MR-k, the KL would be infinite."""
    k = codec.config.k

    def decode(labels: Tensor, _: Context) -> Tensor:
        value, index = labels.topk(k, 1)
        rest = (labels.sum(1, keepdim=True) - value.sum(1, keepdim=True)) / (labels.shape[1] - k)
        return rest.expand_as(labels).clone().scatter_(1, index, value.half().float())

    return lambda: sum(codec.code_bits), 0, decode


def faiss_rq(train: Path, bits: int, width: int = 128) -> Method:
    """PCA to 128 components, slots of one byte, faiss' defaults; trained on up to 20,000 labels of the same epochs."""
    import faiss

    torch.manual_seed(0)
    labels = torch.cat([torch.from_numpy(batch.labels).float() for batch in open_labels(train)])
    labels -= labels.mean(1, keepdim=True)
    mean = labels.mean(0)
    basis = torch.linalg.svd((labels - mean)[torch.randperm(len(labels))[:20_000]], full_matrices=False)[2][:width]
    quantizer = faiss.ResidualQuantizer(width, bits // 8, 8)
    quantizer.train(((labels - mean) @ basis.T).contiguous().numpy())

    def decode(part: Tensor, _: Context) -> Tensor:
        part = part - part.mean(1, keepdim=True)
        codes = quantizer.compute_codes(((part - mean) @ basis.T).contiguous().numpy())
        return torch.from_numpy(quantizer.decode(codes)) @ basis + mean

    return lambda: bits, 2 * width * (labels.shape[1] + 256 * bits // 8), decode


if __name__ == "__main__":
    main()
