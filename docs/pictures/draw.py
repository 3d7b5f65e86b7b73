"""The pictures of docs/how-it-works.md, from a dump of logits in SRe2L's tree: python docs/pictures/draw.py DUMP (needs matplotlib)."""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from vqlabel import FitConfig
from vqlabel.codecs import LabelSample
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.labels import open_labels
from vqlabel.metrics.distortion import kl_divergence
from vqlabel.workflows.fit import fit_sample
from vqlabel.workflows.sample import read_sample

matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
FOLDER = Path(__file__).parent
SHOWN, TOP = 3, 12  # labels, classes of each


@torch.no_grad()
def draw_slots(sample: LabelSample, bits: int = 64) -> None:
    """Three held-out labels, and what the prior and ever more slots say of them."""
    with torch.enable_grad():
        codec, _ = fit_sample(sample, "", FitConfig(bits=bits, temperature=(1.0,), gain=1.0))
    assert isinstance(codec, VqaeCodec)
    labels, context = sample.held[:512].float(), sample.held_context and sample.held_context.rows(slice(0, 512))
    known = codec.prior_inputs(context)
    rates = [0, 1, 2, codec.config.slots]
    parts = [codec.truncate(0), codec.at_slots(1), codec.at_slots(2), codec]
    said = [part.decoder(part.choose(labels, known), known) for part in parts]
    order = kl_divergence(labels, said[0], 1.0).argsort()
    figure = Figure(figsize=(10, 6), layout="constrained")
    for at, axes in zip(order[[80, 256, 430]].tolist(), figure.subplots(SHOWN, 1), strict=True):
        top = labels[at].argsort(descending=True)[:TOP]
        axes.bar(torch.arange(TOP) - 0.3, labels[at].softmax(0)[top], 0.3, color="#9aa0a6", label="teacher")
        for number, (slots, logits) in enumerate(zip(rates, said, strict=True)):
            wrong = float(kl_divergence(labels[at : at + 1], logits[at : at + 1], 1.0))
            name = f"prior and {slots} slot{'s' * (slots > 1)}" if slots else "prior, no bit read"
            place = torch.arange(TOP) + 0.14 * number - 0.08
            axes.bar(place, logits[at].softmax(0)[top], 0.14, label=f"{name}: KL {wrong:.2f}", color=f"C{number}")
        axes.set_xticks(range(TOP), [f"class {c}" for c in top.tolist()], fontsize=7)
        axes.set_ylabel("probability")
        axes.legend(fontsize=7)
    save(figure, "slots")


def draw_heart(sample: LabelSample, bits: int = 32) -> None:
    """KL on the labels that a decoder was fitted on, and on others, over how many they were."""
    images = sample.classes  # of an epoch, in a dump of one image a class
    counts = [count for count in (2, 4, 8, 16, 32) if count * images <= len(sample.seen)]
    seen, held = [], []
    for count in counts:
        context = sample.seen_context and sample.seen_context.rows(slice(0, count * images))
        _, report = fit_sample(
            replace(sample, seen=sample.seen[: count * images], seen_context=context), "", FitConfig(bits=bits, temperature=(1.0,))
        )
        seen.append(report["seen"]["kl_T1"])
        held.append(report["held"]["kl_T1"])
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, held, "o-", label="other labels: held out")
    axes.plot(counts, seen, "o--", label="labels that it was fitted on")
    axes.set(xscale="log", xlabel="views of each image that the codec was fitted on", ylabel="KL at T = 1, nats", ylim=(0, None))
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.legend()
    save(figure, "heart")


def save(figure: Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    read, _ = read_sample(open_labels(sys.argv[1]))
    draw_slots(read)
    draw_heart(read)
