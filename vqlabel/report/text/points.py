"""Held-out labels -> points of rate and distortion: of token_vqae at several rates, and of its peers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.codec import DecodedLabels, TokenVqae
from vqlabel.codecs.token_vqae.fit.price import Rate, price_of, rate_at
from vqlabel.codecs.token_vqae.fit.train import choose_all
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.metrics.factored import chunk_rows
from vqlabel.metrics.token_distortion import TokenDistortion
from vqlabel.progress import Progress
from vqlabel.report.text.account import EXTRAPOLATED
from vqlabel.report.text.measure import PeerLabels, measure_peers
from vqlabel.report.text.methods import CODEC, CODED, FP8, LOGITS, method_of
from vqlabel.report.text.peers import Teacher, TeacherRows, TextPeer, text_peers
from vqlabel.report.text.student import ProbsOf
from vqlabel.vql.text.table import FIELDS

DOCUMENT_BITS = sum(FIELDS)  # of the table of documents, for each document
HEAD_BYTES = 2  # of a number of a head that is kept beside fp8 hidden states


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Of the labels of a dump in one form.

    Attributes:
        bits: per label, with what grows with the number of documents.
        embedded, referenced: bytes of fixed parts, with the output head and without; None: the head cannot be named.
    """

    bits: float
    embedded: int = 0
    referenced: int | None = 0

    def all_in(self, labels: int) -> dict[str, Any]:
        """As JSON: bits per label at the dump's number of labels and at EXTRAPOLATED."""

        def of(fixed: int) -> dict[str, Any]:
            at = {str(count): self.bits + 8 * fixed / count for count in EXTRAPOLATED}
            return {"fixed_bytes": fixed, "all_in_bits": self.bits + 8 * fixed / labels, "all_in_at": at}

        return {**of(self.embedded), "referenced": None if self.referenced is None else of(self.referenced)}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method at one setting.

    Attributes:
        code_bits: per label, without fixed parts and tables.
        figures: of `TokenDistortion`.
        source: what makes the labels for a student: a price of the codec, or a peer.
    """

    method: str
    setting: str
    code_bits: float
    size: Size
    figures: dict[str, Any]
    source: float | TextPeer

    def without_reference(self) -> "Point":
        """The point of labels whose head cannot be named."""
        return replace(self, size=replace(self.size, referenced=None))

    def to_dict(self, labels: int) -> dict[str, Any]:
        """As JSON."""
        return {
            "method": self.method,
            "setting": self.setting,
            "code_bits": self.code_bits,
            **self.size.all_in(labels),
            **self.figures,
        }


def codec_points(
    codec: TokenVqae, held_out: TextSplit, rates: Sequence[int], documents_per_label: float, progress: Progress
) -> Iterator[Point]:
    """The codec at several rates; those that it does not reach are one point."""
    choices = choose_all(codec, held_out, progress)
    size = Size(bits=DOCUMENT_BITS * documents_per_label, embedded=_bytes(codec), referenced=_bytes(codec, ("decoder.out",)))
    prices = dict.fromkeys(price_of(choices, codec.config, rate) for rate in rates)
    for price in prices:
        rate: Rate = rate_at(choices, codec.config, price)
        decoded = codec.decode(choices.stored(codec.config, price), held_out.documents)
        yield Point(
            method=CODEC,
            setting=f"{rate.slots:.1f} codes, {rate.ids:.1f} ids",
            code_bits=rate.bits,
            size=replace(size, bits=size.bits + rate.bits),
            figures=_figures(decoded, held_out.labels),
            source=price,
        )


def peer_points(
    methods: Iterable[str], held_out: TextSplit, codec: TokenVqae | None, seed: int, hidden: bool, progress: Progress
) -> Iterator[Point]:
    """The peers of some methods.

    Args:
        codec: whose prior gives the probabilities for CODED; None: without that method.
        hidden: whether the dump has hidden states.
    """
    labels, chosen = held_out.labels, set(methods)
    known = text_peers(labels.shape[1], labels.head if hidden else None)
    peers = {
        name: peer
        for name, peer in known.items()
        if method_of(name) in chosen or (method_of(name) == "sampling" and CODED in chosen)
    }
    latent = None if codec is None or CODED not in chosen else codec.decoder.predict(held_out.documents)

    def log_prior(rows: slice) -> torch.Tensor:
        assert codec is not None and latent is not None
        return F.log_softmax(codec.decoder.logits(latent[rows]), 1)

    measured = measure_peers(peers, labels, log_prior=None if latent is None else log_prior, seed=seed, progress=progress)
    for name, result in measured.items():
        figures = {figure: value for figure, value in result.items() if figure not in ("title", "bits", "entropy_bits")}
        method, bits, coded = method_of(name), result["bits"], result["entropy_bits"]
        embedded = HEAD_BYTES * labels.head.weight.numel() if method == FP8 else 0
        point = Point(
            method=method,
            setting=_setting(name, method),
            code_bits=bits,
            size=Size(bits=bits, embedded=embedded),
            figures=figures,
            source=peers[name],
        )
        if method in chosen:
            yield point
        if coded is not None and codec is not None:
            prior = Size(
                bits=coded,
                embedded=_bytes(codec, ("decoder.codebook",)),
                referenced=_bytes(codec, ("decoder.codebook", "decoder.out")),
            )
            yield replace(point, method=CODED, code_bits=coded, size=prior)


def student_labels(
    points: Sequence[Point], codec: TokenVqae | None, learn: TextSplit, seed: int, progress: Progress
) -> Iterator[ProbsOf]:
    """For every point, its labels of other documents, as a student reads them."""
    choices = None if codec is None else choose_all(codec, learn, progress)
    for point in points:
        if isinstance(point.source, Teacher):  # its codes of all labels would take 32 kB each
            yield partial(_coded_anew, point.source, learn.labels)
        elif isinstance(point.source, TextPeer):
            yield PeerLabels(point.source, learn.labels, seed)
        else:
            assert codec is not None and choices is not None
            yield codec.decode(choices.stored(codec.config, point.source), learn.documents).probs


def _coded_anew(peer: TextPeer, labels: HiddenLabels, rows: torch.Tensor) -> torch.Tensor:
    """[b] -> [b, V]: a peer's labels, coded for every call; for peers without draws."""
    return peer.decode(peer.encode(TeacherRows.of(labels, rows), torch.Generator()))


def _setting(peer: str, method: str) -> str:
    """A peer's setting among those of its method."""
    middle = peer.removesuffix("-zero").partition("-")[2]
    words = {"topk": f"k = {middle}", "sampling": f"{middle} draws", FP8: "", LOGITS: ""}
    return words.get(method.removesuffix("-zero"), middle.replace("-", ", "))


def _bytes(codec: TokenVqae, without: tuple[str, ...] = ()) -> int:
    """Of the tensors that a file stores."""
    return sum(tensor.nbytes for name, tensor in codec.decoder_tensors().items() if not name.startswith(without))


def _figures(decoded: DecodedLabels, labels: HiddenLabels) -> dict[str, float | None]:
    distortion = TokenDistortion()
    for start in range(0, len(labels), size := chunk_rows(labels.shape[1])):
        part = slice(start, start + size)
        distortion.add(labels.probs(part), decoded.probs(part))
    return distortion.figures()
