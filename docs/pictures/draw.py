"""Draw the pictures of docs/how-it-works.md from a dump of logits in SRe2L's tree; needs matplotlib.

python docs/pictures/draw.py DUMP
"""

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
LABELS, TOP_CLASSES = 3, 12  # labels drawn; classes drawn of each label


@torch.no_grad()
def draw_slots(sample: LabelSample, bits: int = 64) -> None:
    """Draw three held-out labels as decoded from the prior alone, 1, 2 and all slots."""
    with torch.enable_grad():
        codec, _ = fit_sample(sample, "", FitConfig(bits=bits, temperature=(1.0,), gain=1.0))
    assert isinstance(codec, VqaeCodec)
    labels, context = sample.held_out[:512].float(), sample.held_out_context and sample.held_out_context.rows(slice(0, 512))
    known = codec.prior_inputs(context)
    rates = [0, 1, 2, codec.config.slots]
    codecs = [codec.truncate(0), codec.at_slots(1), codec.at_slots(2), codec]
    decoded = [part.decoder(part.choose(labels, known), known) for part in codecs]
    order = kl_divergence(labels, decoded[0], 1.0).argsort()
    figure = Figure(figsize=(10, 6), layout="constrained")
    for row, axes in zip(order[[80, 256, 430]].tolist(), figure.subplots(LABELS, 1), strict=True):
        top = labels[row].argsort(descending=True)[:TOP_CLASSES]
        axes.bar(torch.arange(TOP_CLASSES) - 0.3, labels[row].softmax(0)[top], 0.3, color="#9aa0a6", label="teacher")
        for number, (slots, logits) in enumerate(zip(rates, decoded, strict=True)):
            kl = float(kl_divergence(labels[row : row + 1], logits[row : row + 1], 1.0))
            name = f"prior and {slots} slot{'s' * (slots > 1)}" if slots else "prior alone"
            position = torch.arange(TOP_CLASSES) + 0.14 * number - 0.08
            axes.bar(position, logits[row].softmax(0)[top], 0.14, label=f"{name}: KL {kl:.2f}", color=f"C{number}")
        axes.set_xticks(range(TOP_CLASSES), [f"class {c}" for c in top.tolist()], fontsize=7)
        axes.set_ylabel("probability")
        axes.legend(fontsize=7)
    save(figure, "slots")


def draw_overfitting(sample: LabelSample, bits: int = 32) -> None:
    """Draw KL on training labels and on held-out labels over the number of training views per image."""
    images = sample.classes  # of an epoch, in a dump of one image a class
    views = [count for count in (2, 4, 8, 16, 32) if count * images <= len(sample.train)]
    train, held_out = [], []
    for count in views:
        context = sample.train_context and sample.train_context.rows(slice(0, count * images))
        _, report = fit_sample(
            replace(sample, train=sample.train[: count * images], train_context=context),
            "",
            FitConfig(bits=bits, temperature=(1.0,)),
        )
        train.append(report["train"]["kl_T1"])
        held_out.append(report["held_out"]["kl_T1"])
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(views, held_out, "o-", label="held-out labels")
    axes.plot(views, train, "o--", label="training labels")
    axes.set(xscale="log", xlabel="training views per image", ylabel="KL at T = 1, nats", ylim=(0, None))
    axes.set_xticks(views, map(str, views))
    axes.minorticks_off()
    axes.legend()
    save(figure, "overfitting")


def save(figure: Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    sample, _ = read_sample(open_labels(sys.argv[1]))
    draw_slots(sample)
    draw_overfitting(sample)
