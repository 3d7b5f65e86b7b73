"""What else stores labels of language models: labels -> codes -> probabilities, with every bit counted. All keep one
contract, `TextPeer`.
"""

import torch

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.report.text.peers.base import Codes, TeacherRows, TextPeer
from vqlabel.report.text.peers.dense import Fp8Hidden, Teacher
from vqlabel.report.text.peers.distillkit import SETTINGS, DistillKit
from vqlabel.report.text.peers.sampling import RandomSampling
from vqlabel.report.text.peers.tails import UNIFORM, ZERO
from vqlabel.report.text.peers.topk import TopK

__all__ = ["Codes", "DistillKit", "Fp8Hidden", "RandomSampling", "Teacher", "TeacherRows", "TextPeer", "TopK", "text_peers"]

TOP_K = (16, 50, 128, 256)
DRAWS = (8, 16, 50)


def text_peers(vocabulary: int, head: OutputHead | None = None) -> dict[str, TextPeer]:
    """All peers by name, except those that store more tokens than the vocabulary has.

    Args:
        vocabulary: V.
        head: of the teacher, if labels are hidden states; adds "fp8-hidden".
    """
    peers: dict[str, TextPeer] = {}
    for tail, suffix in ((UNIFORM, ""), (ZERO, "-zero")):
        for k in TOP_K:
            if k <= vocabulary:
                peers[f"top-{k}{suffix}"] = TopK(vocabulary=vocabulary, k=k, tail=tail)
        for name, setting in SETTINGS.items():
            if setting["k"] <= vocabulary:
                peers[f"distillkit-{name}{suffix}"] = DistillKit(vocabulary=vocabulary, tail=tail, name=name, **setting)
        if SETTINGS["recommended"]["k"] <= vocabulary:  # the fit of "budget" does not depend on the precision
            peers[f"distillkit-recommended-float32{suffix}"] = DistillKit(
                vocabulary=vocabulary, tail=tail, name="recommended", precision=torch.float32, **SETTINGS["recommended"]
            )
    for draws in DRAWS:
        peers[f"sampling-{draws}"] = RandomSampling(vocabulary=vocabulary, draws=draws)
    if head is not None:
        peers["fp8-hidden"] = Fp8Hidden(head=head)
    peers["teacher"] = Teacher()
    return peers
