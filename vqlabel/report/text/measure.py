"""Labels and peers -> the bits and the distortion of each peer, a chunk of labels at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.metrics.factored import chunk_rows
from vqlabel.metrics.token_distortion import TokenDistortion
from vqlabel.progress import Progress, silent
from vqlabel.report.text.peers.base import TeacherRows, TextPeer


@torch.no_grad()
def measure_peers(
    peers: Mapping[str, TextPeer],
    labels: HiddenLabels,
    *,
    log_prior: Callable[[slice], Tensor] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, dict[str, Any]]:
    """Encode and decode all labels by every peer.

    Args:
        log_prior: rows -> [rows, V] log-probabilities, in nats, that a reader of the labels has: adds `entropy_bits` to
            peers that can be coded with them.
        seed: of the draws, the same for each peer, whichever others are measured.

    Returns:
        By name: title, bits per label, entropy_bits per label or None, and the figures of `TokenDistortion`.
    """
    running = {name: _Running(peer, _generator(labels, seed)) for name, peer in peers.items()}
    for start in range(0, len(labels), size := chunk_rows(labels.shape[1])):
        part = slice(start, min(start + size, len(labels)))
        rows, prior = TeacherRows.of(labels, part), None if log_prior is None else log_prior(part)
        for peer in running.values():
            peer.add(rows, prior)
        progress("peers", part.stop, len(labels), {})
    return {name: peer.figures() for name, peer in running.items()}


def _generator(labels: HiddenLabels, seed: int) -> torch.Generator:
    return torch.Generator(labels.hidden.device).manual_seed(seed)


class _Running:
    """One peer's sums over the labels so far."""

    def __init__(self, peer: TextPeer, generator: torch.Generator) -> None:
        self.peer, self.generator = peer, generator
        self.distortion, self.bits = TokenDistortion(), 0.0
        self.entropy_bits: float | None = None

    def add(self, rows: TeacherRows, log_prior: Tensor | None) -> None:
        codes = self.peer.encode(rows, self.generator)
        self.bits += self.peer.bits(codes).sum().item()
        coded = None if log_prior is None else self.peer.entropy_bits(codes, log_prior)
        if coded is not None:
            self.entropy_bits = (self.entropy_bits or 0.0) + coded.sum().item()
        self.distortion.add(rows.probs, self.peer.decode(codes))

    def figures(self) -> dict[str, Any]:
        n = max(1, self.distortion.labels)
        return {
            "title": self.peer.title,
            "bits": self.bits / n,
            "entropy_bits": None if self.entropy_bits is None else self.entropy_bits / n,
            **self.distortion.figures(),
        }


class PeerLabels:
    """The labels of a peer as a student reads them: encoded once, decoded for the rows of each step.

    Codes stay in memory. A label that is read again is the same: a file of random draws holds one set of draws.

    Attributes:
        codes: of all labels, tensors [n, ...].
        bits: mean per label.
    """

    @torch.no_grad()
    def __init__(self, peer: TextPeer, labels: HiddenLabels, seed: int = 0) -> None:
        generator, size = _generator(labels, seed), chunk_rows(labels.shape[1])
        parts = [
            peer.encode(TeacherRows.of(labels, slice(start, start + size)), generator) for start in range(0, len(labels), size)
        ]
        self.peer, self.codes = peer, tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.bits = peer.bits(self.codes).mean().item()

    def __call__(self, rows: Tensor) -> Tensor:
        """[b] indices of labels -> [b, V] probabilities."""
        return self.peer.decode(tuple(tensor[rows] for tensor in self.codes))
